"""FreeU acts as its equations say, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_pipelines import build

import gate
from gate.data import load_data
from gate.errors import UsageError
from gate.passes import single_pass
from gate.registry import create_technique
from gate.request import Batch
from gate.technique import Technique

LAYERS = ("mid", "up0", "up1", "up3")


def features(name: str, batch: Batch) -> dict[str, torch.Tensor]:
    technique = create_technique(name) if name else Technique()
    with torch.no_grad(), technique.attach(batch.backbone):
        return single_pass(technique, batch.request(50, 0), LAYERS).features


@pytest.mark.parametrize("factor", ["s1", "s2", "b1", "b2"])
def test_every_factor_acts_and_only_from_its_own_block_on(factor: str, batch: Batch) -> None:
    plain = features("", batch)
    settings = dict.fromkeys(("s1", "s2", "b1", "b2"), 1.0) | {factor: 1.5}
    changed = features(f"freeu[{','.join(f'{k}={v}' for k, v in settings.items())}]", batch)
    assert torch.equal(plain["mid"], changed["mid"])  # it comes before; the block scales its own copy
    same = torch.allclose(plain["up0"], changed["up0"], atol=1e-6)  # to the rounding of a Fourier pair
    assert same == factor.endswith("2")
    assert not torch.allclose(plain["up3"], changed["up3"])


def test_the_denoiser_is_as_before(batch: Batch) -> None:
    blocks = batch.backbone.denoiser.up_blocks
    assert isinstance(blocks, torch.nn.ModuleList)
    plain = features("", batch)
    features("freeu", batch)
    assert not [k for block in blocks for k in ("s1", "s2", "b1", "b2") if k in vars(block)]
    assert torch.equal(plain["up3"], features("", batch)["up3"])


def test_a_users_own_factors_come_back(batch: Batch) -> None:
    denoiser = batch.backbone.denoiser
    try:
        denoiser.enable_freeu(s1=0.5, s2=0.5, b1=1.1, b2=1.1)  # type: ignore[operator]
        features("freeu", batch)
        assert vars(denoiser.up_blocks[0])["b1"] == 1.1  # type: ignore[index]
    finally:
        for block in denoiser.up_blocks:  # type: ignore[union-attr]
            for key in ("s1", "s2", "b1", "b2"):
                vars(block).pop(key, None)


def test_zero_is_refused_since_diffusers_reads_it_as_off() -> None:
    with pytest.raises(UsageError, match="above 0"):
        create_technique("freeu", b1=0)


def test_blocks_without_it_built_in_are_hooked_to_the_same(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gate.techniques import freeu

    built_in = features("freeu", batch)
    monkeypatch.setattr(freeu, "_has_freeu", lambda block, i: False)
    hooked = features("freeu", batch)
    assert not torch.equal(hooked["up3"], features("", batch)["up3"])
    for layer in LAYERS:
        torch.testing.assert_close(hooked[layer], built_in[layer], rtol=1e-5, atol=1e-5)


FAMILIES = ("sdxl", "kolors", "pixel-unet", "unconditional")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_unet_with_skips_is_served(family: str, tmp_path: Path) -> None:
    """What the first resnet of the first up block works on: half of the backbone's channels times b, the skip's
    four lowest frequencies times s (Si et al. 2023, Eq. 3 to 5)."""
    backbone: Any = gate.load_backbone(str(build(family, tmp_path)), device="cpu", dtype="float32")
    batch = backbone.batch(load_data("scenes-held-out", n=1, size=backbone.image_size).samples)
    seen: list[torch.Tensor] = []
    blocks = list(backbone.denoiser.up_blocks)[:2]
    for block in blocks:
        block.resnets[0].norm1.register_forward_pre_hook(
            lambda _, args: seen.append(args[0].detach().clone())
        )
    technique = create_technique("freeu", s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    technique.check(backbone, batch.samples)
    before = {key: value.clone() for key, value in backbone.denoiser.state_dict().items()}
    with torch.no_grad(), technique.attach(backbone):
        single_pass(technique, batch.request(50, 0), ()).prediction.sum()
    first, second = seen
    seen.clear()
    with torch.no_grad():
        plain = single_pass(Technique(), batch.request(50, 0), ()).prediction
    width = backbone.denoiser.config.block_out_channels[-1]
    torch.testing.assert_close(first, _by_hand(seen[0], width, 1.5, 0.9), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(second, seen[1])
    with torch.no_grad():
        again = single_pass(Technique(), batch.request(50, 0), ()).prediction
    assert torch.equal(plain, again)
    assert all(torch.equal(value, before[key]) for key, value in backbone.denoiser.state_dict().items())


def _by_hand(both: torch.Tensor, width: int, b: float, s: float) -> torch.Tensor:
    hidden, skip = both[:, :width].clone(), both[:, width:]
    hidden[:, : width // 2] *= b
    spectrum = torch.fft.fftn(skip, dim=(-2, -1))
    low = [torch.fft.fftfreq(n, 1 / n).round() for n in skip.shape[-2:]]
    inside = [(frequency == 0) | (frequency == -1) for frequency in low]
    spectrum = spectrum * torch.where(inside[0][:, None] & inside[1][None], s, 1.0)
    return torch.cat([hidden, torch.fft.ifftn(spectrum, dim=(-2, -1)).real], dim=1)
