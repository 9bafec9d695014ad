"""Half precision of a fit: the backbone in bfloat16, what is learned in float32; float16 is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from gate.cli import app
from gate.fit import Fitted, fit, make_fit_config

SMALL: dict[str, Any] = {
    **{"data": "scenes-held-out", "samples": 8, "steps": 2, "check_every": 2, "batch_size": 2, "sheet": 0},
}
FILE = Path("over-fitted") / "pytorch_lora_weights.safetensors"


def fitted(folder: Path, **changes: Any) -> Fitted:
    return fit(make_fit_config({**SMALL, **changes, "output": str(folder)}))


@pytest.mark.slow
def test_a_lora_in_bfloat16_follows_the_one_in_float32(tmp_path: Path) -> None:
    half, full = (fitted(tmp_path / dtype, name="lora", dtype=dtype) for dtype in ("bfloat16", "float32"))
    a, b = (load_file(done.path / FILE) for done in (half, full))
    assert set(a) == set(b) and all(value.dtype == torch.float32 for value in a.values())
    learned = torch.cat([value.flatten() for key, value in a.items() if "lora_B" in key])
    assert not torch.equal(learned, learned.bfloat16().float())  # steps of 1e-3 are not rounded to it
    wanted = torch.cat([b[key].flatten() for key in a if "lora_B" in key])
    assert float(torch.nn.functional.cosine_similarity(learned, wanted, dim=0)) > 0.8
    for step, error in full.report["held_out"].items():
        assert abs(half.report["held_out"][step] / error - 1) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "smooth-lora",
        "controlnet",
        "t2i-adapter",
        "ip-adapter",
        "textual-inversion",
        "cleandift",
        "info-latent",
    ],
)
def test_every_trainer_learns_in_bfloat16(name: str, tmp_path: Path) -> None:
    report = fitted(tmp_path / "fit", name=name, dtype="bfloat16").report
    before, after = list(report["held_out"].values())
    assert before > 0 and before != after


def test_float16_is_refused_in_a_sentence(tmp_path: Path) -> None:
    command = [
        "fit",
        "lora",
        "--data",
        "scenes-held-out",
        "--dtype",
        "float16",
        "--output",
        str(tmp_path / "x"),
    ]
    done = CliRunner().invoke(app, command)
    said = " ".join(done.output.split())
    assert done.exit_code == 2 and "nothing here scales them up; choose float32 or bfloat16" in said
    assert not (tmp_path / "x").exists()
