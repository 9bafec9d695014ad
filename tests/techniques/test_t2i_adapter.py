"""T2I-Adapter in the public layout: features of the control image, added once per image; foreign and missing nets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gate.backbone import Backbone
from gate.errors import ConfigurationError, UnsuitableError, UsageError
from gate.passes import single_pass
from gate.registry import create_technique
from gate.request import Batch
from gate.sample import SampleSet
from gate.testing import check_technique


def save_net(folder: Path, backbone: Backbone, in_channels: int = 3) -> str:
    """config.json and diffusion_pytorch_model.safetensors, as TencentARC's repositories have them."""
    from diffusers import T2IAdapter

    torch.manual_seed(0)
    channels = list(backbone.denoiser.config.block_out_channels)  # type: ignore[union-attr]
    T2IAdapter(in_channels=in_channels, channels=channels, downscale_factor=4).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def net(tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_net(tmp_path_factory.mktemp("t2i"), tiny)


@pytest.fixture()
def batch(tiny: Backbone, scenes: SampleSet) -> Batch:
    return tiny.batch(scenes[:2].samples, everyone=scenes)


def prediction(name: str, batch: Batch, **settings: object) -> torch.Tensor:
    technique = create_technique(name, **settings)
    with torch.no_grad(), technique.attach(batch.backbone):
        return single_pass(technique, batch.request(300, 0), ("up1",)).prediction


@pytest.mark.parametrize("channels", [1, 3])
def test_the_contract_holds_for_nets_of_grey_and_of_rgb_images(
    channels: int, tiny: Backbone, scenes: SampleSet, tmp_path: Path
) -> None:
    weights = save_net(tmp_path, tiny, channels)
    report = check_technique(create_technique("t2i-adapter", weights=weights), tiny, scenes[:3])
    assert report.ok, str(report)


def test_it_is_diffusers_own_call(net: str, batch: Batch) -> None:
    from diffusers import T2IAdapter

    from gate.adapters.drawing import as_tensor, canny

    features = T2IAdapter.from_pretrained(net)(as_tensor(canny, [s.image for s in batch.samples]))
    request = batch.request(300, 0)
    with torch.no_grad():
        expected = batch.backbone.denoiser(
            request.x_t, request.t, request.conditioning.prompt_embeds, return_dict=False,
            down_intrablock_additional_residuals=[0.5 * f for f in features],
        )[0]  # fmt: skip
    torch.testing.assert_close(prediction("t2i-adapter", batch, weights=net, scale=0.5), expected)


def test_the_control_matters_and_two_adapters_add_up(net: str, batch: Batch) -> None:
    canny, tile = (prediction("t2i-adapter", batch, weights=net, controls=c) for c in ("canny", "tile"))
    assert not torch.allclose(canny, tile)
    first = create_technique("t2i-adapter", weights=net, scale=0.5)
    request = batch.request(300, 0)
    with torch.no_grad():
        twice = first.denoise(request, lambda r: first.denoise(r, batch.backbone.denoise)).prediction
    torch.testing.assert_close(twice, canny, rtol=1e-4, atol=1e-5)


def test_the_net_runs_once_per_batch(net: str, batch: Batch) -> None:
    technique = create_technique("t2i-adapter", weights=net)
    technique.fit(batch.backbone, batch.samples)  # type: ignore[arg-type]
    calls: list[int] = []
    technique._net.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[attr-defined]
    with torch.no_grad():
        for t in (50, 300, 500):
            single_pass(technique, batch.request(t, 0), ())
    assert len(calls) == 1


def test_missing_foreign_and_unknown(tiny: Backbone, scenes: SampleSet, tmp_path: Path) -> None:
    from diffusers import T2IAdapter

    with pytest.raises(UnsuitableError, match="hf download somebody/net"):
        create_technique("t2i-adapter", weights="somebody/net").check(tiny, scenes)
    T2IAdapter(channels=[8, 8], downscale_factor=4).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=r"\[8, 8\] channels"):
        create_technique("t2i-adapter", weights=str(tmp_path)).check(tiny, scenes)
    with pytest.raises(UsageError, match="controls must be one of"):
        create_technique("t2i-adapter", controls="cany")
