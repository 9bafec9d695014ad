"""ControlNet on a small net built from a config: residuals, several at once, the lead, missing and foreign weights."""

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


@pytest.fixture(scope="module")
def net(tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlNet of the tiny denoiser whose zero convolutions are not zero, in the layout of the public ones."""
    from diffusers import ControlNetModel

    torch.manual_seed(0)
    made = ControlNetModel.from_unet(tiny.denoiser, conditioning_embedding_out_channels=(16, 32, 96))
    with torch.no_grad():
        for parameter in made.controlnet_mid_block.parameters():
            parameter.normal_(0, 0.01)
        for block in made.controlnet_down_blocks:
            block.weight.normal_(0, 0.01)
        made.controlnet_cond_embedding.conv_out.weight.normal_(0, 0.05)
    folder = tmp_path_factory.mktemp("net")
    made.save_pretrained(folder)
    return folder


@pytest.fixture()
def batch(tiny: Backbone, scenes: SampleSet) -> Batch:
    return tiny.batch(scenes[:2].samples, everyone=scenes)


def prediction(name: str, batch: Batch, t: int = 300, **settings: object) -> torch.Tensor:
    technique = create_technique(name, **settings)
    with torch.no_grad(), technique.attach(batch.backbone):
        return single_pass(
            technique, batch.request(t, 0, technique.condition(batch.neutral, batch)), ("up1",)
        ).prediction


def test_the_contract_holds(net: Path, tiny: Backbone, scenes: SampleSet) -> None:
    report = check_technique(create_technique("controlnet", weights=str(net), lead=10), tiny, scenes[:3])
    assert report.ok, str(report)


def test_the_control_image_matters_and_two_nets_add_up(net: Path, batch: Batch) -> None:
    plain = prediction("controlnet", batch, scale=0.0)
    canny = prediction("controlnet", batch, weights=str(net))
    tile = prediction("controlnet", batch, controls="tile", weights=str(net))
    assert not torch.allclose(plain, canny) and not torch.allclose(canny, tile)
    halves = prediction("controlnet", batch, controls="canny+canny", weights=f"{net}+{net}", scale=0.5)
    torch.testing.assert_close(halves, canny, rtol=1e-4, atol=1e-5)


def test_a_composition_under_a_guider_controls_each_of_its_calls(net: Path, batch: Batch) -> None:
    both = prediction(f"guidance-cfg+controlnet[weights={net}]", batch)
    assert not torch.allclose(both, prediction("guidance-cfg", batch))


def test_missing_and_foreign_weights(tiny: Backbone, scenes: SampleSet, tmp_path: Path) -> None:
    from diffusers import ControlNetModel

    with pytest.raises(UnsuitableError, match="hf download somebody/net"):
        create_technique("controlnet", weights="somebody/net").check(tiny, scenes)
    other = ControlNetModel(
        block_out_channels=(8, 8), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=16,
        norm_num_groups=4, attention_head_dim=2, conditioning_embedding_out_channels=(8, 8),
    )  # fmt: skip
    other.save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="cross-attention of 16"):
        create_technique("controlnet", weights=str(tmp_path)).check(tiny, scenes)
    with pytest.raises(UsageError, match="controls must be of"):
        create_technique("controlnet", controls="cany")
