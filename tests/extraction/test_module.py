"""FeatureExtractor against `extract`, finite differences and what a training loop does with modules."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from small_pipelines import build
from torch import Tensor

from gate.backbone import Backbone, pixels
from gate.backbones import load_backbone
from gate.errors import ConfigurationError, UsageError
from gate.extraction.module import FeatureExtractor
from gate.sample import SampleSet
from gate.technique import Technique

LAYERS = ["mid", "up1"]


def floats(samples: SampleSet, n: int = 2) -> Tensor:
    return pixels(samples[:n])


@pytest.mark.parametrize(
    ("technique", "layers"),
    [
        ("", LAYERS),
        ("", ["up2.attention1.block0.cross.map", "up1"]),
        ("", "up-level1-upsampler-out"),
        ("noise-ensemble[members=2]", LAYERS),
        ("lora", LAYERS),
        ("controlnet", LAYERS),
        ("guidance-cfg", ["up1"]),  # asks for a prediction: the forward runs through
    ],
)
def test_the_numbers_are_those_of_extract_bit_for_bit(
    tiny: Backbone, scenes: SampleSet, technique: str, layers: Any
) -> None:
    samples = scenes[:2]
    expected = tiny.extract(samples, layers=layers, timestep=100, technique=technique, seed=3)
    made = FeatureExtractor(tiny, layers=layers, timestep=100, technique=technique, seed=3)
    found = made(floats(scenes), captions=[s.caption for s in samples])
    assert list(found) == list(expected)
    for layer in expected:
        assert torch.equal(found[layer], expected[layer]), layer
    if layers == "up-level1-upsampler-out":
        assert found["up-level1-upsampler-out"].ndim == 4


def test_the_prompt_of_an_image_is_its_caption(tiny: Backbone, scenes: SampleSet) -> None:
    expected = tiny.extract(scenes[:2], layers="up1", technique="prompt")
    made = FeatureExtractor(tiny, layers="up1", technique="prompt")
    assert torch.equal(made(floats(scenes), captions=[s.caption for s in scenes[:2]])["up1"], expected["up1"])
    with pytest.raises(Exception, match="needs a caption"):
        made(floats(scenes))


@pytest.mark.parametrize("technique", ["", "lora", "controlnet", "shared-timestep"])
def test_gradients_to_the_image_are_those_of_finite_differences(scenes: SampleSet, technique: str) -> None:
    made = FeatureExtractor("tiny", layers="up1", timestep=50, technique=technique)
    start = floats(scenes, 1).clamp(0.1, 0.9)
    along = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(made(start)["up1"].shape, generator=torch.Generator().manual_seed(1))
    key = made._samples(start, None)
    made._samples = lambda *_: key  # type: ignore[method-assign]  # the noise stays where the image moves

    def loss(images: Tensor) -> Tensor:
        return (made(images)["up1"] * weights).sum()

    image = start.clone().requires_grad_(True)
    loss(image).backward()
    assert image.grad is not None
    step = 1e-3
    with torch.no_grad():
        slope = (loss(start + step * along) - loss(start - step * along)) / (2 * step)
    assert torch.allclose((image.grad * along).sum(), slope, rtol=2e-2)


def test_no_graph_is_built_where_nobody_asks(tiny: Backbone, scenes: SampleSet) -> None:
    made = FeatureExtractor(tiny, layers="up1")
    images = floats(scenes)
    assert not made(images)["up1"].requires_grad
    with torch.no_grad():
        assert not made(images.clone().requires_grad_(True))["up1"].requires_grad
    with torch.inference_mode():
        inside = made(images)["up1"]
    assert torch.equal(inside, made(images)["up1"])
    assert made(images.clone().requires_grad_(True))["up1"].requires_grad  # prompts kept within serve outside


def test_a_technique_that_cuts_gradients_is_said_to(tiny: Backbone, scenes: SampleSet) -> None:
    class Cutting(Technique):
        name = "cutting"
        families = frozenset({"text"})

        def denoise(self, request: Any, call_next: Any) -> Any:
            response = call_next(request)
            return response.with_(features={k: v.detach() for k, v in response.features.items()})

    made = FeatureExtractor(tiny, layers="up1", technique=Cutting())
    with pytest.raises(ConfigurationError, match="cutting gives features without a graph"):
        made(floats(scenes).requires_grad_(True))


def test_adapters_begin_as_nothing_learn_and_come_back(scenes: SampleSet) -> None:
    images = floats(scenes)
    plain = FeatureExtractor("tiny", layers=LAYERS)
    made = FeatureExtractor(plain.backbone, layers=LAYERS, adapter_rank=2)
    before = {k: v.clone() for k, v in plain.backbone.denoiser.state_dict().items()}
    first = made(images)
    assert all(torch.equal(first[k], v) for k, v in plain(images).items())
    # up1 is the last layer: nothing of up2 or up3 learns
    names = [name for name, _ in made.named_parameters()]
    assert names and not [n for n in names if "up_blocks.2" in n or "up_blocks.3" in n]
    optimiser = torch.optim.Adam(made.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        loss = made(images)["up1"].square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[2] < losses[0]
    assert all(p.grad is not None for p in made.parameters())
    again = FeatureExtractor(plain.backbone, layers=LAYERS, adapter_rank=2)
    state = {k: v.clone() for k, v in made.state_dict().items()}
    assert set(state) == set(names)  # the backbone's weights are not in it
    again.load_state_dict(state, strict=True)
    assert torch.equal(again(images)["up1"], made(images)["up1"])
    assert not torch.equal(made(images)["up1"], first["up1"])
    after = plain.backbone.denoiser.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert not any(m._forward_hooks for m in plain.backbone.denoiser.modules())


def test_what_a_technique_learned_is_in_the_state(tiny: Backbone, scenes: SampleSet) -> None:
    fitted = FeatureExtractor(tiny, layers="up1", technique="prompt-search", fit_on=scenes[:8])
    state = fitted.state_dict()
    assert list(state) == ["technique.candidates"]
    fresh = FeatureExtractor(tiny, layers="up1", technique="prompt-search[candidates='a bird']")
    fresh.load_state_dict(state, strict=True)
    assert fresh.technique.state()["candidates"].equal(state["technique.candidates"])
    with pytest.raises(RuntimeError, match="Missing key"):
        fresh.load_state_dict({}, strict=True)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        FeatureExtractor(tiny, layers="up1").load_state_dict(state, strict=True)


def test_inside_another_module(tiny: Backbone, scenes: SampleSet) -> None:
    model = torch.nn.Sequential(FeatureExtractor(tiny, layers="up1", adapter_rank=1))
    head = torch.nn.ModuleDict({"features": model, "head": torch.nn.Conv2d(8, 2, 1)})
    keys = set(head.state_dict())
    assert {"head.weight", "head.bias"} < keys and all(
        k.startswith(("head.", "features.0.adapters.")) for k in keys
    )
    head.load_state_dict(head.state_dict(), strict=True)
    head.train()
    assert not tiny.denoiser.training
    head.to("cpu")


def test_a_deep_copy_shares_the_backbone_and_nothing_else(tiny: Backbone, scenes: SampleSet) -> None:
    made = FeatureExtractor(tiny, layers="up1", technique="lora", adapter_rank=1)
    twin = copy.deepcopy(made)
    assert twin.backbone is made.backbone and twin.technique is not made.technique
    assert twin.technique.name == "lora"
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(0.1)
    images = floats(scenes)
    assert not torch.equal(twin(images)["up1"], made(images)["up1"])
    with pytest.raises(UsageError, match="state_dict"):
        pickle.dumps(made)


def test_it_follows_to_and_refuses_another_dtype(tiny: Backbone) -> None:
    made = FeatureExtractor(tiny, layers="up1", technique="lora")
    assert made.to("cpu") is made and made.float() is made
    for call in (made.half, lambda: made.to(torch.bfloat16)):
        with pytest.raises(UsageError, match="load it in another"):
            call()
    moved = FeatureExtractor("tiny", layers="up1", technique="lora", adapter_rank=1)
    moved.to("meta")
    assert moved.backbone.device.type == "meta"
    assert {p.device.type for p in moved.backbone.denoiser.parameters()} == {"meta"}
    assert {p.device.type for p in moved.parameters()} == {"meta"}


def test_a_backbone_that_was_moved_goes_on(tiny: Backbone, scenes: SampleSet) -> None:
    before = FeatureExtractor(tiny, layers="up1")(floats(scenes))["up1"]
    tiny.move(torch.device("cpu"))  # type: ignore[attr-defined]
    assert torch.equal(FeatureExtractor(tiny, layers="up1")(floats(scenes))["up1"], before)


def test_autocast_is_for_the_denoiser(tiny: Backbone, scenes: SampleSet) -> None:
    made = FeatureExtractor(tiny, layers="up1", technique="generic-prompt[prompt='a red bird']")
    images = floats(scenes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = made(images)["up1"]
    full = made(images)["up1"]
    expected = tiny.extract(scenes[:2], layers="up1", technique="generic-prompt[prompt='a red bird']")["up1"]
    assert torch.equal(full, expected)  # no prompt was kept in the lower precision
    error = float((low.float() - full).norm() / full.norm())
    assert 1e-5 < error < 5e-2


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.rand(2, 3, 32, 64), "resize them"),
        (torch.rand(3, 64, 64), "shape"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "divide by 255"),
        (torch.rand(1, 3, 64, 64) * 255, "Undo what normalised"),
        (torch.rand(1, 3, 64, 64) * 2 - 1, "Undo what normalised"),
        (torch.full((1, 3, 64, 64), float("nan")), "Undo what normalised"),
        (torch.rand(0, 3, 64, 64), "no images"),
    ],
)
def test_images_of_a_wrong_kind_are_refused(tiny: Backbone, images: Tensor, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        FeatureExtractor(tiny, layers="up1")(images)


def test_wrong_arguments_are_refused(tiny: Backbone, scenes: SampleSet) -> None:
    with pytest.raises(UsageError, match="layer"):
        FeatureExtractor(tiny, layers="up9")
    with pytest.raises(UsageError, match="Timestep"):
        FeatureExtractor(tiny, timestep=1000)
    with pytest.raises(UsageError, match="captions"):
        FeatureExtractor(tiny, layers="up1")(floats(scenes), captions=["one"])
    with pytest.raises(ConfigurationError, match="no place"):
        FeatureExtractor(tiny, layers="in", adapter_rank=1)


def test_channels_are_known_without_a_forward(tiny: Backbone, scenes: SampleSet) -> None:
    made = FeatureExtractor(tiny, layers=LAYERS)
    found = made(floats(scenes))
    assert {k: v.channels for k, v in made.info.items()} == {k: v.shape[1] for k, v in found.items()}


@pytest.mark.parametrize("family", ["pixart", "sd3"])
def test_transformers_serve_too(family: str, tmp_path: Any) -> None:
    backbone = load_backbone(str(build(family, tmp_path)))
    made = FeatureExtractor(backbone, layers="dift", adapter_rank=1)
    images = torch.rand(2, 3, backbone.image_size, backbone.image_size)
    images = (images * 255).round() / 255
    expected = backbone.extract(
        [(i.permute(1, 2, 0) * 255).round().byte().numpy() for i in images], layers="dift"
    )
    found = made(images.requires_grad_(True))
    for layer, value in expected.items():
        assert torch.equal(found[layer].detach(), value)
    sum(v.sum() for v in found.values()).backward()
    assert images.grad is not None and bool(images.grad.isfinite().all())
