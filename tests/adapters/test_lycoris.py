"""LyCORIS files: LoHa and LoKr give their formula through peft's layers; the other kinds are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gate.adapters.lycoris import lycoris_kind
from gate.adapters.merge import lora_weights
from gate.backbone import Backbone
from gate.errors import ConfigurationError

LINEAR = "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "down_blocks.0.resnets.0.conv1"
RANK, ALPHA, SCALE = 3, 6.0, 0.5


def _weight(tiny: Backbone, path: str) -> torch.Tensor:
    return tiny.denoiser.get_submodule(path).weight.detach().clone()  # type: ignore[union-attr, operator]


def _changed(
    tiny: Backbone, file: Path, state: dict[str, dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """What a file with {layer: {name: tensor}} changes, at SCALE."""
    heads = {path: f"lora_unet_{path.replace('.', '_')}" for path in state}
    named = {f"{heads[path]}.{key}": v for path, tensors in state.items() for key, v in tensors.items()}
    save_file({key: value.contiguous() for key, value in named.items()}, file)
    before = {key: value.clone() for key, value in tiny.denoiser.state_dict().items()}
    found = lora_weights(tiny, str(file), "", SCALE)
    assert set(found) == {f"unet.{path}.weight" for path in state}
    after = tiny.denoiser.state_dict()
    assert set(after) == set(before) and all(torch.equal(value, before[key]) for key, value in after.items())
    return {path: found[f"unet.{path}.weight"] for path in state}


def _drawn(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [0.3 * torch.randn(shape, generator=g) for shape in shapes]


def test_loha_is_a_product_of_two_low_rank_matrices(tiny: Backbone, tmp_path: Path) -> None:
    state, expected = {}, {}
    for path in (LINEAR, CONV):
        own = _weight(tiny, path)
        out, inner = own.shape[0], own[0].numel()
        a1, b1, a2, b2 = _drawn((out, RANK), (RANK, inner), (out, RANK), (RANK, inner))
        names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha")
        state[path] = dict(zip(names, (a1, b1, a2, b2, torch.tensor(ALPHA)), strict=True))
        expected[path] = own + SCALE * ALPHA / RANK * ((a1 @ b1) * (a2 @ b2)).reshape(own.shape)
    for path, found in _changed(tiny, tmp_path / "a.safetensors", state).items():
        torch.testing.assert_close(found, expected[path], rtol=0, atol=1e-6)


def test_tucker_s_loha_of_a_convolution(tiny: Backbone, tmp_path: Path) -> None:
    own = _weight(tiny, CONV)
    out, inner, *kernel = own.shape
    core, a, b = (RANK, RANK, *kernel), (RANK, out), (RANK, inner)
    t1, t2, a1, b1, a2, b2 = _drawn(core, core, a, b, a, b)
    names = ("hada_t1", "hada_t2", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    one, two = (torch.einsum("ijkl,jr,ip->prkl", t, b, a) for t, a, b in ((t1, a1, b1), (t2, a2, b2)))
    state = {CONV: dict(zip(names, (t1, t2, a1, b1, a2, b2), strict=True))}  # no alpha: it is the rank
    found = _changed(tiny, tmp_path / "a.safetensors", state)
    torch.testing.assert_close(found[CONV], own + SCALE * one * two, rtol=0, atol=1e-6)


@pytest.mark.parametrize("whole", [True, False])
def test_lokr_is_a_kronecker_product(tiny: Backbone, tmp_path: Path, whole: bool) -> None:
    """Where both factors are whole, LyCORIS leaves alpha out."""
    own = _weight(tiny, LINEAR)
    out, inner = own.shape
    w1, w2, a, b = _drawn((4, 8), (out // 4, inner // 8), (out // 4, RANK), (RANK, inner // 8))
    state = {"lokr_w1": w1, "alpha": torch.tensor(ALPHA)}
    state |= {"lokr_w2": w2} if whole else {"lokr_w2_a": a, "lokr_w2_b": b}
    delta = torch.kron(w1, w2) if whole else ALPHA / RANK * torch.kron(w1, a @ b)
    found = _changed(tiny, tmp_path / "a.safetensors", {LINEAR: state})
    torch.testing.assert_close(found[LINEAR], own + SCALE * delta, rtol=0, atol=1e-6)


def test_lokr_of_a_convolution(tiny: Backbone, tmp_path: Path) -> None:
    own = _weight(tiny, CONV)
    out, inner, *kernel = own.shape
    w1, w2 = _drawn((4, 2), (out // 4, inner // 2, *kernel))
    found = _changed(tiny, tmp_path / "a.safetensors", {CONV: {"lokr_w1": w1, "lokr_w2": w2}})
    kron = torch.einsum("ab,cdkl->acbdkl", w1, w2).reshape(own.shape)
    torch.testing.assert_close(found[CONV], own + SCALE * kron, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"oft_blocks": torch.zeros(2, 2)}, "holds OFT weights, not a LoRA's.*Merge it"),
        ({"boft_R": torch.zeros(2, 2)}, "holds BOFT weights, not a LoRA's.*Merge it"),
        ({"hada_w1_a": torch.zeros(2, 2), "dora_scale": torch.zeros(2)}, r"LoHa with .*dora_scale.*Merge it"),
        ({"hada_w1_a": torch.zeros(2, 2)}, r"to_k of .* are not complete.*fetch the file again"),
        ({"lokr_w1": torch.zeros(2, 2), "lokr_w2": torch.zeros(3, 3)}, "not of the layer's shape.*fetch"),
    ],
)
def test_what_is_not_served_is_refused(
    tensors: dict[str, torch.Tensor], said: str, tiny: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        _changed(tiny, tmp_path / "a.safetensors", {LINEAR: tensors})


def test_a_layer_that_is_not_there_is_named(tiny: Backbone, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"LoKr with lora_unet_mid_block_no.*no layer of this backbone"
    ):
        _changed(tiny, tmp_path / "a.safetensors", {"mid_block.no": {"lokr_w1": torch.zeros(2, 2)}})


def test_a_locon_is_a_lora() -> None:
    assert lycoris_kind(["lora_unet_conv_in.lora_mid.weight", "lora_unet_conv_in.lora_down.weight"]) == ""
