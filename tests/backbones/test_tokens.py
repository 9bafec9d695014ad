"""Where an image's tokens lie, read from the call: held against what the output projection keeps, and against patches.

Two truths that know nothing of marks. What the output keeps: an output's position depends on one token of the last
block. Whose a token is: where attention gives every token its own query, an activation depends on its own patch alone.
"""

# long: odd calls of many denoisers, and the same two questions to each
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gate
from gate.backbones.layers import layer_paths
from gate.backbones.tokens import Latent, Untold
from gate.backbones.trail import NONE, Trail
from gate.errors import ConfigurationError

H, W, TEXT = 4, 6, 16  # tokens of an image that is not square; channels of a text


@dataclass
class Call:
    """A denoiser, what it is given, and how many latent positions a side are one token; 0: it is packed."""

    denoiser: Any
    given: dict[str, Any]
    patch: int = 0

    @property
    def latent(self) -> Tensor:
        found: Tensor = self.given["hidden_states"]
        return found

    def __call__(self) -> Tensor:
        made: Tensor = self.denoiser(**self.given, return_dict=False)[0]
        return made

    def place(self, x: Tensor, i: int, j: int) -> Tensor:
        """What of a latent, or of an output like it, is at one position of the grid: (b, ...)."""
        if not self.patch:
            return x[:, i * W + j]
        p = self.patch
        return x[..., i * p : (i + 1) * p, j * p : (j + 1) * p].flatten(1)


def _text(n: int, rows: int = 2) -> Tensor:
    return torch.randn(rows, n, TEXT)


def flux(*, words: int = 7, reference: bool = False, rows: int = 2) -> Call:
    from diffusers import FluxTransformer2DModel

    made = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=TEXT,
        axes_dims_rope=(4, 6, 6),
    )
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(float(H)), torch.arange(float(W)))
    other = torch.cartesian_prod(torch.ones(1), torch.arange(4.0), torch.arange(4.0))
    ids = torch.cat([ids, other]) if reference else ids
    given = {
        "hidden_states": torch.randn(rows, len(ids), 16),
        "encoder_hidden_states": _text(words, rows),
        "pooled_projections": torch.randn(rows, TEXT),
        "timestep": torch.full((rows,), 0.4),
        "img_ids": ids,
        "txt_ids": torch.zeros(words, 3),
    }
    return Call(made, given)


def qwen(*, words: int = 7, references: int = 0) -> Call:
    from diffusers import QwenImageTransformer2DModel

    made = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        axes_dims_rope=(4, 6, 6),
    )
    shapes = [(1, H, W), *[(1, 4, 4)] * references]
    given = {
        "hidden_states": torch.randn(2, H * W + 16 * references, 16),
        "encoder_hidden_states": _text(words),
        "encoder_hidden_states_mask": torch.ones(2, words),
        "timestep": torch.full((2,), 0.4),
        "img_shapes": [shapes, shapes],
    }
    return Call(made, given)


def hunyuan_image(*, words: int = 7, glyphs: int = 5) -> Call:
    from diffusers import HunyuanImageTransformer2DModel

    made = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=TEXT,
        text_embed_2_dim=TEXT,
        rope_axes_dim=(8, 8),
        patch_size=(1, 1),
    )
    mask = torch.ones(2, words)
    mask[1, 3:] = 0
    given = {
        "hidden_states": torch.randn(2, 4, H, W),
        "timestep": torch.full((2,), 400.0),
        "encoder_hidden_states": _text(words),
        "encoder_attention_mask": mask,
        "encoder_hidden_states_2": _text(glyphs),
        "encoder_attention_mask_2": torch.ones(2, glyphs),
    }
    return Call(made, given, 1)


def lumina2(*, words: tuple[int, ...] = (9, 4)) -> Call:
    from diffusers import Lumina2Transformer2DModel

    made = Lumina2Transformer2DModel(
        sample_size=16,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(512, 64, 64),
        cap_feat_dim=TEXT,
    )
    mask = torch.zeros(len(words), max(words), dtype=torch.bool)
    for row, n in zip(mask, words, strict=True):
        row[:n] = True
    given = {
        "hidden_states": torch.randn(len(words), 4, 2 * H, 2 * W),
        "timestep": torch.full((len(words),), 0.4),
        "encoder_hidden_states": _text(max(words), len(words)),
        "encoder_attention_mask": mask,
    }
    return Call(made, given, 2)


def cogview4(*, words: int = 7) -> Call:
    from diffusers import CogView4Transformer2DModel

    made = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=TEXT,
        time_embed_dim=8,
        condition_dim=4,
        sample_size=16,
        pos_embed_max_size=16,
        rope_axes_dim=(16, 16),
    )
    size = torch.tensor([[64.0, 96.0]] * 2)
    given = {
        "hidden_states": torch.randn(2, 4, 2 * H, 2 * W),
        "encoder_hidden_states": _text(words),
        "timestep": torch.full((2,), 400.0),
        "original_size": size,
        "target_size": size,
        "crop_coords": torch.zeros(2, 2),
    }
    return Call(made, given, 2)


def omnigen() -> Call:
    """Its image comes last, behind text and a time token, in one stream."""
    from diffusers import OmniGenTransformer2DModel

    made = OmniGenTransformer2DModel(
        in_channels=4,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        num_layers=2,
        pad_token_id=0,
        vocab_size=40,
        time_step_dim=8,
        rope_scaling={"long_factor": [1.0] * 4, "short_factor": [1.0] * 4},
        pos_embed_max_size=16,
    )
    n = 7 + 1 + H * W
    given = {
        "hidden_states": torch.randn(2, 4, 2 * H, 2 * W),
        "timestep": torch.full((2,), 0.4),
        "input_ids": torch.ones(2, 7, dtype=torch.long),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": torch.ones(2, n, n),
        "position_ids": torch.arange(n).expand(2, -1),
    }
    return Call(made, given, 2)


EQUAL = H * W  # words: as many as the image has tokens
CALLS: dict[str, Callable[[], Call]] = {
    "flux": flux,
    "flux, words as many as tokens": lambda: flux(words=EQUAL),
    "flux kontext with a reference": lambda: flux(reference=True),
    "qwen-image, words as many as tokens": lambda: qwen(words=EQUAL),
    "qwen-image with two references": lambda: qwen(references=2),
    "hunyuan-image": hunyuan_image,
    "hunyuan-image, words as many as tokens": lambda: hunyuan_image(words=EQUAL - 5),
    "lumina 2, prompts of unequal length": lumina2,
    "lumina 2, a prompt longer than the image": lambda: lumina2(words=(31, 24)),
    "cogview 4, words as many as tokens": lambda: cogview4(words=EQUAL),
    "cogview 4, a prompt longer than the image": lambda: cogview4(words=40),
    "omnigen": omnigen,
}
AT = ((0, 0), (1, 4), (H - 1, W - 1))


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> Call:
    torch.manual_seed(0)
    made = CALLS[request.param]()
    made.denoiser.eval().requires_grad_(False)
    for (
        module
    ) in made.denoiser.modules():  # AdaLN begins at zero in some: then nothing would depend on anything
        if isinstance(module, nn.Linear) and not bool(module.weight.any()):
            nn.init.normal_(module.weight, std=0.2)
    return made


def _tensors(made: Any) -> list[Tensor]:
    return [made] if isinstance(made, Tensor) else [x for x in made if isinstance(x, Tensor)]


def test_the_image_is_what_the_output_keeps(call: Call) -> None:
    """Of the last block's tokens, each position of the output depends on one: that is the one captured there."""
    known = layer_paths(call.denoiser)
    last = [k for k in known if k.startswith(("block", "single")) and "." not in k][-1]
    raw: list[Tensor] = []

    def keep(module: nn.Module, args: Any, made: Any) -> None:
        raw.extend(x.requires_grad_() if x.is_leaf else x for x in _tensors(made))

    handle = call.denoiser.get_submodule(known[last]).register_forward_hook(keep)
    call.latent.requires_grad_()
    with gate.capture(call.denoiser, [last]) as seen:
        output = call()
    handle.remove()
    assert seen[last].shape[-2:] == (H, W)
    for i, j in AT:
        slopes = torch.autograd.grad(
            call.place(output, i, j).sum(), raw, allow_unused=True, retain_graph=True
        )
        for row in range(len(output)):
            kept = [
                x[row, n]
                for x, slope in zip(raw, slopes, strict=True)
                if slope is not None
                for n in slope[row].abs().sum(-1).nonzero().flatten().tolist()
            ]
            assert len(kept) == 1 and torch.equal(kept[0], seen[last][row, :, i, j])


def test_every_layer_s_token_is_its_own_patch_s(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda query, key, value, **options: 0 * real(query, key, value, **options) + query,
    )
    layers = [k for k in layer_paths(call.denoiser) if not k.endswith("map") and k != "attention"]
    call.latent.requires_grad_()
    with gate.capture(call.denoiser, layers) as seen:
        call()
    with gate.capture(call.denoiser, layers) as again:  # the places are known now
        call()
    looked_at = 0
    for layer in layers:
        assert torch.equal(seen[layer], again[layer])
        if seen[layer].shape[-2:] != (H, W):
            assert layer in ("latent", "out") and call.patch
            continue
        for i, j in AT[1:]:
            (slope,) = torch.autograd.grad(seen[layer][:, :, i, j].sum(), call.latent, retain_graph=True)
            own = call.place(slope, i, j)
            assert bool(own.flatten(1).any(1).all()), layer
            own.zero_() if not call.patch else _clear(slope, i, j, call.patch)
            assert not bool(slope.any()), layer
            looked_at += 1
    assert looked_at >= 16


def _clear(slope: Tensor, i: int, j: int, p: int) -> None:
    slope[..., i * p : (i + 1) * p, j * p : (j + 1) * p] = 0


def test_maps_are_of_the_image_s_queries(call: Call) -> None:
    """Softmax rows: the image's keys and the others' together are all."""
    known = layer_paths(call.denoiser)
    layers = [k for k in known if k.startswith("block0.") and k.endswith("map")]
    with torch.no_grad(), gate.capture(call.denoiser, layers) as seen:
        call()
    total = sum(seen[layer].sum(-1) for layer in layers)
    assert isinstance(total, Tensor) and total.shape[-1] == H * W
    assert all(seen[k].shape[-1] == H * W for k in layers if "self" in k)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_layouts_of_two_calls_are_not_confused() -> None:
    """The same shapes, prompts of other lengths: a mask's values are part of what places are known for."""
    torch.manual_seed(0)
    one = lumina2(words=(9, 4))
    one.denoiser.eval()
    mask = one.given["encoder_attention_mask"]
    with torch.no_grad(), gate.capture(one.denoiser, ["block0"]) as seen:
        one()
        first = seen["block0"]
        other = Call(one.denoiser, {**one.given, "encoder_attention_mask": mask.flip(0)}, 2)
        other()
    assert not torch.equal(first, seen["block0"])
    with torch.no_grad(), gate.capture(one.denoiser, ["block0"]) as anew:
        Call(one.denoiser, {**other.given, "hidden_states": other.latent.clone()}, 2)()
    assert torch.equal(anew["block0"], seen["block0"])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"img_ids": torch.zeros(H * W, 3)}, "two of its packed tokens have the same ids"),
        ({"img_ids": torch.rand(H * W, 3).mul(torch.tensor([0.0, 1, 1]))}, "make no grid"),
    ],
)
def test_what_cannot_be_told_is_refused(change: dict[str, Any], why: str) -> None:
    call = flux()
    call.given |= change
    with (
        pytest.raises(ConfigurationError, match=f"Which tokens of block0 are the image's .*{why}"),
        torch.no_grad(),
        gate.capture(call.denoiser, ["block0"]),
    ):
        call()
    with torch.no_grad(), gate.capture(call.denoiser, ["block0"], strict=False) as seen:
        call()
    assert "block0" not in seen and seen.calls == 1
    with (
        pytest.raises(ConfigurationError, match=why),
        torch.no_grad(),
        gate.capture(call.denoiser, ["block0"]),
    ):
        call()  # known by now


def test_several_frames_are_refused() -> None:
    latent = torch.randn(1, 4, 3, 8, 8)
    read, trail = Latent.read({"hidden_states": latent}), Trail()
    read.mark(trail)
    with trail:
        tokens = latent.flatten(2).transpose(1, 2)
        marks = trail.tokens(tokens)
    assert marks is not None
    with pytest.raises(Untold, match="several frames"):
        read.pick(marks)
    with pytest.raises(Untold, match="several frames"):
        shapes = {"x": torch.randn(1, 48, 4), "img_shapes": [[(3, 4, 4)]]}
        Latent.read(shapes).pick(torch.zeros(1, 48))


def test_packed_tokens_without_a_place_are_refused() -> None:
    for given, why in (
        ({}, "nothing in the call says"),
        ({"img_shapes": [[(1, 3, 4)]]}, "the places of 12 packed tokens and gives 16"),
    ):
        with pytest.raises(Untold, match=why):
            Latent.read({"hidden_states": torch.randn(1, 16, 4), **given}).pick(torch.zeros(1, 16))


def _followed(work: Callable[[Tensor], Tensor]) -> Tensor | None:
    x, trail = torch.randn(2, 5, 4), Trail()
    trail.mark_tokens(x)
    with trail:
        made = work(x)
        return trail.tokens(made)


def test_marks_follow_what_moves_tokens_and_end_at_what_mixes_them() -> None:
    text, weight = torch.randn(2, 3, 4), torch.randn(4, 4)
    five = torch.arange(5).expand(2, -1)
    none = torch.full((2, 3), NONE)

    def assigned(x: Tensor) -> Tensor:
        made = torch.zeros(2, 8, 4)
        made[:, 3:] = x
        return made

    moved: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
        "cat": (lambda x: torch.cat([text, x], 1), torch.cat([none, five], 1)),
        "slice": (lambda x: x[:, 2:], five[:, 2:]),
        "assign": (assigned, torch.cat([none, five], 1)),
        "flip": (lambda x: x.flip(1), five.flip(1)),
        "heads": (lambda x: x.view(2, 5, 2, 2).transpose(1, 2).transpose(1, 2).flatten(2), five),
        "linear": (lambda x: torch.nn.functional.linear(x, weight), five),
        "sum": (lambda x: 2 + x * torch.randn(2, 1, 4), five),
        "pad": (lambda x: torch.nn.functional.pad(x, (0, 0, 3, 0)), torch.cat([none, five], 1)),
        "masked": (
            lambda x: torch.where(torch.tensor([True, True, False, True, True])[:, None], x, torch.zeros(4)),
            torch.where(torch.tensor([True, True, False, True, True]), five, NONE),
        ),
        "attention": (lambda x: torch.softmax(x @ text.transpose(1, 2), -1) @ text, five),
    }
    for name, (work, expected) in moved.items():
        marks = _followed(work)
        assert marks is not None and torch.equal(marks.long(), expected), name
    mixed: dict[str, Callable[[Tensor], Tensor]] = {
        "mean over tokens": lambda x: x.mean(1, keepdim=True).expand(-1, 5, -1),
        "read by text": lambda x: torch.nn.functional.scaled_dot_product_attention(text, x, x),
        "sorted": lambda x: x.sort(1).values,
        "fresh": lambda x: torch.zeros_like(x),
        "two tokens in one": lambda x: x + x.roll(1, 1),
    }
    for name, work in mixed.items():
        assert _followed(work) is None, name
