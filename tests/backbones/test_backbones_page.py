"""docs/backbones.md has a row for every model that is served, and what a row says is so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recorded_pipelines import RECORDED, build_recorded
from small_pipelines import PIPELINES, build
from test_recorded import FAMILY_SIZES, SIZES, count_template, ftfy  # noqa: F401

import gate
from gate.backbones import config_layers, resolve_layers
from gate.backbones.recorded.proof import prove
from gate.errors import ConfigurationError

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
PRESETS = ("paper", "practical", "dift")
QUICK = ("unet", "pixart", "aura-flow", "dit")  # the others take the same way
EVERY = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in (*PIPELINES, *RECORDED)]


def _rows() -> Iterator[tuple[str, list[str]]]:
    """The key of each model among the small pipelines, and its cells."""
    text = PAGE.read_text(encoding="utf-8").partition("## Every model")[2].partition("\n## ")[0]
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| ") or cells[0] == "model":
            continue
        family = cells[1].strip("`")
        spelled = cells[0].partition(" (")[0].lower()
        letters = {key.replace("-", ""): key for key in (*RECORDED, "amused")}
        yield (family if family in PIPELINES else letters[spelled.replace(" ", "").replace("-", "")]), cells


def test_every_model_has_a_row() -> None:
    found = [key for key, _ in _rows()]
    assert sorted(found) == sorted([*PIPELINES, *RECORDED, "amused"])


@pytest.mark.parametrize("name", EVERY)
def test_a_row_says_what_is_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, served, prediction, noise, listed, presets, _ = dict(_rows())[name]
    recorded, folder = name in RECORDED, tmp_path / name
    (build_recorded if recorded else build)(name, _made(folder))
    size = (SIZES if recorded else FAMILY_SIZES).get(name)
    backbone: Any = gate.load_backbone(str(folder), device="cpu", dtype="float32", image_size=size)
    if name == "qwen-image":
        count_template(monkeypatch)
    proof = prove(backbone)
    assert backbone.family == served.strip("`")
    assert proof.prediction <= float(prediction) and proof.noise <= float(noise)
    assert listed == ("once loaded" if recorded else "configs")
    if not recorded:  # its denoiser's weights away
        for file in folder.glob("*/diffusion_pytorch_model.safetensors"):
            file.unlink()
        assert [row.id for row in config_layers(str(folder))] == [row.id for row in backbone.layers()]
    assert {p for p in PRESETS if _names_layers(p, backbone)} == {
        p for p in PRESETS if p in presets.partition(";")[0]
    }


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _names_layers(preset: str, backbone: Any) -> bool:
    try:
        return bool(resolve_layers([preset], backbone.layer_paths))
    except ConfigurationError:
        return False


@pytest.mark.parametrize(
    "name", [n if n == "dit" else pytest.param(n, marks=pytest.mark.slow) for n in RECORDED]
)
def test_a_recorded_model_is_screened(name: str, tmp_path: Path) -> None:
    """The families are in `test_families`."""
    folder = build_recorded(name, _made(tmp_path / name))
    presets = dict(_rows())[name][5]
    listed = [row.id for row in config_layers(str(folder)) if not row.is_map] if "none" in presets else []
    techniques = ["noise-ensemble[members=2]", "ddim-inversion[steps=2]"]
    done = gate.screen(
        techniques=techniques,
        backbone=str(folder),
        image_size=SIZES.get(name),
        layers=listed[-1:] or ["paper"],
        samples=8,
        timesteps=[50],
        seeds=1,
        probes=[],
        image_samples=0,
        resamples=200,
        device="cpu",
        workers=1,
        output=str(tmp_path / "run"),
    )
    assert {row["name"] for row in done.results["ranking"]} == set(techniques) and not done.results["skipped"]
    assert done.results["environment"]["family"] == "recorded"
