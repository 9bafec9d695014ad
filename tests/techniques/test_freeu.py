"""FreeU acts as its equations say, and leaves nothing behind."""

from __future__ import annotations

import pytest
import torch

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
