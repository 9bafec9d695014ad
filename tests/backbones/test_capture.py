"""`gate.capture`: in the user's own loop, in a generating pipeline, joint attention, and nothing left behind."""

# long: one function and all places where it is used
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_pipelines import build
from torch import Tensor
from torch.nn.functional import interpolate, scaled_dot_product_attention

import gate
from gate.backbone import Backbone
from gate.backbones.maps import mean_map, softmax_weights
from gate.data import load_data
from gate.errors import ConfigurationError, UsageError
from gate.sample import SampleSet


def _request(backbone: Backbone, n: int = 2) -> Any:
    return backbone.batch(load_data("scenes-held-out", n=n, size=backbone.image_size).samples).request(50, 0)


def test_weights_are_those_that_attention_gives_its_values() -> None:
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, n, 8, generator=made) for heads, n in ((4, 6), (2, 5), (2, 5)))
    allowed = torch.rand(2, 1, 6, 5, generator=made) > 0.3
    allowed[..., 0] = True
    for options in (
        {"enable_gqa": True},
        {"enable_gqa": True, "attn_mask": allowed, "scale": 0.7},
        {"enable_gqa": True, "attn_mask": torch.randn(6, 5, generator=made)},
        {"enable_gqa": True, "is_causal": True},
    ):
        weights = softmax_weights(q, k, v, **options)  # type: ignore[arg-type]
        expected = scaled_dot_product_attention(q, k, v, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(weights @ v.repeat_interleave(2, 1), expected)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 6))


def test_a_pipeline_that_generates_is_watched_step_by_step(tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(build("unet", tmp_path), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)

    def generate() -> Tensor:
        made = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
        return pipe("a cat", generator=made, **options).images  # type: ignore[no-any-return]

    plain = generate()
    with gate.capture(pipe.unet, ["up1", "attention"], steps=[0, 2]) as seen:
        watched = generate()
    assert torch.equal(plain, watched)
    assert seen.calls == 4 and sorted(seen.steps) == [0, 2] and set(seen.steps[0]) == {"up1", "attention"}
    assert seen["up1"].shape[0] == 2  # guidance: both halves
    assert not torch.equal(seen.steps[0]["up1"], seen.steps[2]["up1"])
    with gate.capture(pipe.unet, ["mid"], steps="all") as seen:
        generate()
    assert len(seen.steps) == 4 and torch.equal(seen.steps[3]["mid"], seen["mid"])


def test_every_layer_of_tiny_is_the_same_where_the_forward_stops(tiny: Backbone) -> None:
    request = _request(tiny, 1)
    layers = [row.id for row in tiny.layers()]
    with torch.no_grad():
        whole = tiny.activate(request, layers)[1]
        for layer in [*layers[::5], "attention"]:
            assert torch.equal(tiny.reach(request, [layer])[layer], whole[layer]), layer
        pair = tiny.reach(request, ["up1.attention0.block0.cross.map", "attention"])
        assert torch.equal(pair["attention"], whole["attention"])


def test_a_capture_that_stops_ends_its_block_and_leaves_nothing(tiny: Backbone) -> None:
    request, went_on = _request(tiny, 1), False
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny.denoiser.modules()]
    with torch.no_grad(), gate.capture(tiny.denoiser, ["up1", "mid"], stop=True, steps="all") as seen:
        tiny.predict(request)
        went_on = True
    assert not went_on and set(seen) == {"up1", "mid"} and seen.calls == 1 and set(seen.steps[0]) == set(seen)
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny.denoiser.modules()]
    assert torch._C._len_torch_function_stack() == 0
    with torch.no_grad():
        assert tiny.predict(request).shape == request.x_t.shape


def test_gradients_flow_through_a_forward_that_stops(tiny: Backbone) -> None:
    request = _request(tiny, 1)
    leaves = []
    for reach in (lambda r: tiny.reach(r, ["up1"]), lambda r: tiny.activate(r, ["up1"])[1]):
        x = request.x_t.clone().requires_grad_()
        reach(request.with_(x_t=x))["up1"].square().sum().backward()
        leaves.append(x.grad)
    assert leaves[0] is not None and leaves[1] is not None and torch.equal(leaves[0], leaves[1])


def test_aliases_are_keys_too(tiny: Backbone) -> None:
    wanted = {"up-level1-upsampler-out": True, "mid": False}  # a layer file of the peer's, read
    with torch.no_grad(), gate.capture(tiny.denoiser, wanted) as seen:
        tiny.predict(_request(tiny))
    assert list(seen) == ["up1.upsample"]
    assert seen["up-level1-upsampler-out"] is seen["up1.upsample"]
    with pytest.raises((KeyError, UsageError)):
        seen["up2"]


def test_an_unknown_layer_is_an_error_before_anything_runs(tiny: Backbone) -> None:
    with pytest.raises(UsageError, match="Did you mean"), gate.capture(tiny.denoiser, ["up1.resnet9"]):
        raise AssertionError


def test_a_pipeline_is_not_its_denoiser(tiny: Backbone) -> None:
    with (
        pytest.raises(UsageError, match="numbers of forwards"),
        gate.capture(tiny.denoiser, ["up1"], steps="5"),
    ):
        raise AssertionError
    with pytest.raises(UsageError, match="takes the denoiser itself"), gate.capture(tiny, ["up1"]):  # type: ignore[arg-type]
        raise AssertionError


def _hooks(backbone: Backbone) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.denoiser.modules())


def test_maps_change_no_bit_and_leave_no_hook(tiny: Backbone) -> None:
    request, before = _request(tiny), _hooks(tiny)
    maps = [layer for layer in tiny.layer_paths if layer.endswith("map")]
    with torch.no_grad():
        plain = tiny.predict(request)
        with gate.capture(tiny.denoiser, maps) as seen:
            watched = tiny.predict(request)
    assert torch.equal(plain, watched) and set(seen) == set(maps) and _hooks(tiny) == before
    with pytest.raises(RuntimeError), gate.capture(tiny.denoiser, maps):
        tiny.denoiser(request.x_t, 50, encoder_hidden_states=torch.zeros(2, 3, 7))
    assert _hooks(tiny) == before
    with torch.no_grad():
        assert torch.equal(tiny.predict(request), plain)


def test_only_the_wanted_attention_is_looked_at(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    module = sys.modules["gate.backbones.maps"]
    computed: list[int] = []
    real = module.softmax_weights
    monkeypatch.setattr(module, "softmax_weights", lambda *a, **k: computed.append(1) or real(*a, **k))  # type: ignore[func-returns-value]
    with (
        torch.no_grad(),
        gate.capture(tiny.denoiser, ["up1", "mid.attention0.block0.cross.map"]),
    ):
        tiny.predict(_request(tiny))
    assert len(computed) == 1


def test_another_attention_than_torch_s_is_told(tiny: Backbone) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    held = tiny.denoiser.attn_processors
    tiny.denoiser.set_attn_processor(AttnProcessor())
    try:
        with (
            pytest.raises(ConfigurationError, match="computes no softmax attention that can be seen"),
            torch.no_grad(),
            gate.capture(tiny.denoiser, ["mid.attention0.block0.cross.map"]),
        ):
            tiny.predict(_request(tiny))
    finally:
        tiny.denoiser.set_attn_processor(held)


def test_attention_features_are_the_mean_over_heads_and_layers_of_the_up_path(tiny: Backbone) -> None:
    crosses = [layer for layer in tiny.layer_paths if layer.startswith("up") and layer.endswith("cross.map")]
    with torch.no_grad(), gate.capture(tiny.denoiser, ["attention", *crosses]) as seen:
        tiny.predict(_request(tiny))
    total = torch.zeros_like(seen["attention"])
    for layer in crosses:
        b, heads, n, words = seen[layer].shape
        side = round(n**0.5)
        mean = seen[layer].sum(1).div(heads).permute(0, 2, 1).reshape(b, words, side, side)
        total += interpolate(mean, total.shape[-2:], mode="bilinear", align_corners=False)
    assert total.shape == (2, 32, 16, 16)
    torch.testing.assert_close(seen["attention"], total / len(crosses))
    torch.testing.assert_close(seen["attention"].sum(1), torch.ones(2, 16, 16))  # rows of a softmax


def test_equal_maps_have_themselves_as_mean() -> None:
    one = torch.rand(1, 1, 12, 5)
    made = mean_map([one.expand(1, 3, 12, 5), one], (3, 4))
    torch.testing.assert_close(made, one[:, 0].transpose(1, 2).reshape(1, 5, 3, 4))


def test_images_that_are_not_square(tiny: Backbone) -> None:
    text = torch.zeros(1, 32, tiny.denoiser.config.cross_attention_dim)
    layers = ["up3", "up3.attention0.block0.self.q", "attention", "up2.attention0.block0.ff.inner"]
    with torch.no_grad(), gate.capture(tiny.denoiser, layers) as seen:
        tiny.denoiser(torch.randn(1, 4, 16, 32), 50, encoder_hidden_states=text)
    for layer in layers:
        h, w = seen[layer].shape[-2:]
        assert w == 2 * h, layer
    assert seen["attention"].shape[-2:] == (16, 32)


@pytest.mark.parametrize(
    ("n", "grid", "size"),
    [
        (16, (16, 16), (4, 4)),
        (8, (13, 5), (4, 2)),  # 13 x 5, 7 x 3, 4 x 2: its aspect ratio alone would say 5
        (15, (9, 5), (5, 3)),
        (6, (24, 36), (2, 3)),
        (54, (18, 27), (6, 9)),  # a third of each side
        (7, (16, 16), None),
        (1, (16, 16), (1, 1)),
    ],
)
def test_positions_lie_on_a_level_of_the_latent(
    n: int, grid: tuple[int, int], size: tuple[int, int] | None
) -> None:
    from gate.backbones.maps import level_of

    assert level_of(n, grid) == size


def test_a_latent_of_odd_sides(tiny: Backbone) -> None:
    text = torch.zeros(1, 32, tiny.denoiser.config.cross_attention_dim)
    layers = [row.id for row in tiny.layers() if not row.is_map]
    with torch.no_grad(), gate.capture(tiny.denoiser, [*layers, "attention"]) as seen:
        tiny.denoiser(torch.randn(1, 4, 26, 10), 50, encoder_hidden_states=text)
    stages = {layer.split(".")[0]: seen[layer].shape[-2:] for layer in layers if layer.split(".")[0] == layer}
    for layer in layers:
        if ".attention" in layer:
            resnet = layer.split(".attention")[0] + ".resnet0"
            assert seen[layer].shape[-2:] == seen[resnet].shape[-2:], (layer, stages)


JOINT = ("sd3", "flux", "flux2", "qwen-image")


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    sizes = {"sd3": None, "flux": 64, "flux2": 64, "qwen-image": 64, "z-image": 64}
    made = {}
    for family, size in sizes.items():
        folder = build(family, tmp_path_factory.mktemp(family))
        made[family] = gate.load_backbone(str(folder), device="cpu", dtype="float32", image_size=size)
    return made


@pytest.mark.parametrize("family", JOINT)
def test_joint_attention_is_split_into_image_and_text(family: str, joint: dict[str, Backbone]) -> None:
    """With the text's values at zero, what attention gives the image is the image's own weights times its values."""
    backbone: Any = joint[family]
    attention: Any = backbone.denoiser.transformer_blocks[0].attn
    held = {name: p.detach().clone() for name, p in attention.named_parameters()}
    layers = ["block0.self.v", "block0.self.map", "block0.cross.map", "block0.self"]
    with torch.no_grad():
        for parameter in attention.add_v_proj.parameters():
            parameter.zero_()
        with gate.capture(backbone.denoiser, layers) as seen:
            backbone.predict(_request(backbone))
        for name, parameter in attention.named_parameters():
            parameter.copy_(held[name])
        own, text = seen["block0.self.map"], seen["block0.cross.map"]
        torch.testing.assert_close(own.sum(-1) + text.sum(-1), torch.ones(own.shape[:3]))
        v = seen["block0.self.v"].flatten(2).transpose(1, 2)
        v = v.unflatten(2, (own.shape[1], -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
        given = attention.to_out[0]((own @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(
            seen["block0.self"].flatten(2).transpose(1, 2), given, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("family", "last", "after"),
    [
        ("flux", "single", "norm_out:in"),
        ("flux2", "single", "norm_out:in"),
        ("z-image", "refiner", "layers.0:in"),
    ],
)
def test_the_image_s_tokens_are_found_in_a_stream_of_both(
    family: str, last: str, after: str, joint: dict[str, Backbone]
) -> None:
    """Where one end of a join is the image alone, both ends must agree."""
    backbone = joint[family]
    known = backbone.layer_paths
    layer = [k for k in known if k.startswith(last) and "." not in k][-1]
    with torch.no_grad(), gate.capture(backbone.denoiser, {"end": known[layer], "next": after}) as seen:
        backbone.predict(_request(backbone))
    assert seen["end"].ndim == 4 and torch.equal(seen["end"], seen["next"])


def test_packed_images_that_are_not_square(joint: dict[str, Backbone], scenes: SampleSet) -> None:
    from gate.backbones.families.flux import grid, pack

    flux: Any = joint["flux"]
    given = flux.encode_prompts(["a cat"])
    x = torch.randn(1, flux.denoiser.config.in_channels // 4, 4, 12)
    with (
        torch.no_grad(),
        gate.capture(flux.denoiser, ["latent", "block0", "single0.ff.inner", "out"]) as seen,
    ):
        flux.denoiser(
            pack(x),
            encoder_hidden_states=given.prompt_embeds,
            pooled_projections=given.pooled,
            timestep=torch.tensor([0.05]),
            img_ids=grid(2, 6).float(),
            txt_ids=torch.zeros(given.prompt_embeds.shape[1], 3),
            guidance=torch.ones(1) if flux.denoiser.config.guidance_embeds else None,
        )
    assert all(seen[layer].shape[-2:] == (2, 6) for layer in seen)
    assert torch.equal(seen["latent"], torch.nn.functional.pixel_unshuffle(x, 2))


def test_a_denoiser_that_no_family_serves() -> None:
    """CogView 4: its blocks give the image first, and one feed-forward serves image and text in turn."""
    from diffusers import CogView4Transformer2DModel

    torch.manual_seed(0)
    denoiser: Any = CogView4Transformer2DModel(
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=4,
        in_channels=4,
        out_channels=4,
        text_embed_dim=8,
        time_embed_dim=8,
        condition_dim=4,
    ).eval()
    size = torch.tensor([[8, 8], [8, 8]])
    given = (
        torch.randn(2, 4, 8, 8),
        torch.randn(2, 6, 8),
        torch.tensor([5, 5]),
        size,
        size,
        torch.zeros(2, 2),
    )
    calls: list[Tensor] = []
    block: list[Tensor] = []
    denoiser.transformer_blocks[1].ff.register_forward_hook(lambda m, a, o: calls.append(o))
    denoiser.transformer_blocks[1].register_forward_hook(lambda m, a, o: block.append(o[0]))
    with torch.no_grad(), gate.capture(denoiser, ["block1", "block1.ff", "block1.self.map", "dift"]) as seen:
        denoiser(*given)
    assert seen["block1"].shape == (2, 16, 4, 4) and seen["block1.self.map"].shape == (2, 4, 16, 16)
    assert torch.equal(seen["block1"].flatten(2).transpose(1, 2), block[0])
    assert torch.equal(seen["block1.ff"].flatten(2).transpose(1, 2), calls[0])
    assert "block1.adaln" in seen
