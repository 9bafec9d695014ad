"""The benchmark in miniature: rows do the same job. No second is looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, page, parts
from benchmarks.compare import difference
from benchmarks.demands import DEMANDS, Demand, KernelDemand
from benchmarks.extraction import main as extraction
from benchmarks.floors import counted
from benchmarks.hooks import HookLoop
from benchmarks.job import Grid, make_job
from benchmarks.measure import EXACT, FAST, NAIVE, Settings, measure
from benchmarks.models import converted, load
from benchmarks.planned import Planned
from benchmarks.results import FOLDER, read_all
from benchmarks.sets import NAMES, layers_of
from benchmarks.timing import Ratio, alternated, ratios
from gate.backbone import Backbone

pytestmark = pytest.mark.slow  # half a minute: what users run does not touch it

MODELS = ("tiny", "sd15-miniature", "pixart-miniature")


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Backbone:
    return load(request.param)


def given(row: Any) -> Any:
    with row.ready():
        return row()


@pytest.mark.parametrize("name", NAMES)
def test_ours_gives_what_a_naive_loop_gives(model: Backbone, name: str) -> None:
    mode = "screen" if name in ("dift", "maps") else "cached"
    job = make_job(model, mode, layers_of(name, model), Grid(2, 3, 1, 2), batch=2)
    truth, ours = given(HookLoop(model, job, encode_alone=True)), given(Planned(model, job))
    assert len(truth) == (4 if mode == "screen" else 1)
    found = difference(ours, truth)
    if name == "maps":  # the naive loop's attention is another algorithm
        assert found.frobenius < 1e-5
    else:
        assert found.same  # bit for bit
    half = converted(model, "bfloat16", channels_last=True)
    assert difference(given(Planned(half, job)), truth).frobenius < 0.1
    assert model.dtype == torch.float32
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.denoiser.modules())


def test_cells_hold_all_that_the_page_needs(tmp_path: Path) -> None:
    common = ["--grid", "2,2,1,1", "--batch", "2", "--repeats", "2", "--output", str(tmp_path)]
    assert (
        extraction(["--model", "pixart-miniature", "--sets", "dift", "--modes", "screen", "cold", *common])
        == 0
    )
    [found] = read_all(tmp_path)
    assert json.loads(json.dumps(found)) == found and found["command"].startswith(
        "python -m benchmarks.extraction --model"
    )
    screen, cold = found["cells"]
    assert {r["name"] for r in screen["rows"]} == {NAIVE, EXACT, "hooks bfloat16", FAST}
    assert all(len(r["seconds"]) == 2 for cell in found["cells"] for r in cell["rows"])
    flops = screen["gflop"]
    assert flops["planned"] < flops["naive"] and cold["gflop"]["planned"] < cold["gflop"]["naive"]
    assert (
        1
        < page.counted(cold, cold["grid"])
        < page.counted(screen, screen["grid"])
        < page.counted(screen, page.FULL)
    )
    assert (tmp_path / next(tmp_path.glob("*.md"))).read_text(encoding="utf-8").count(NAIVE) > 2


def test_a_row_that_computes_something_else_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def another(self: Planned) -> Any:
        made = honest(self)
        return {cell: {k: v * 1.01 for k, v in features.items()} for cell, features in made.items()}

    honest = Planned.__call__
    monkeypatch.setattr(Planned, "__call__", another)
    with pytest.raises(ValueError, match="computes something else"):
        measure(
            Settings("pixart-miniature", sets=("dift",), modes=("cold",), grid=Grid(1, 1), batch=1, repeats=1)
        )


@pytest.mark.parametrize("family", ["sd15-miniature", "pixart-miniature"])
def test_flops_are_those_of_the_layers_own_costs(family: str) -> None:
    """An independent count: the listing's share of the forward, made by hooks instead of stopping."""
    model = load(family)
    costs = {row.id: row.cost for row in model.layers()}
    layers = layers_of("practical", model)
    work, least = counted(model, layers, batch=2), max(costs[layer] for layer in layers)
    if (
        family == "pixart-miniature"
    ):  # a transformer's forward stops at the end of the block that holds the layer
        assert least <= work.cut / work.forward <= least + 0.25
    else:
        assert work.cut / work.forward == pytest.approx(least, rel=0.02)
    assert sum(work.products.values()) == pytest.approx(work.forward + work.encode, rel=1e-6)


def test_a_difference_sees_a_wrong_bit_a_wrong_shape_and_nan() -> None:
    a = {(0, 0, 0): {"x": torch.ones(2, 3)}}
    assert difference(a, a).same
    b = {(0, 0, 0): {"x": torch.ones(2, 3) * 2}}
    found = difference(b, a)
    assert (found.frobenius, found.cosine, found.same) == (1.0, 1.0, False)
    for wrong in (torch.ones(3, 2), torch.full((2, 3), float("nan"))):
        with pytest.raises(ValueError):
            difference({(0, 0, 0): {"x": wrong}}, a)
    with pytest.raises(ValueError, match="other passes"):
        difference({}, a)


def test_rows_take_turns_and_ratios_are_of_one_turn() -> None:
    said: list[str] = []

    class Row:
        def __init__(self, name: str) -> None:
            self.name = name

        def ready(self) -> Any:
            import contextlib

            said.append(f"{self.name} ready")
            return contextlib.nullcontext()

        def __call__(self) -> None:
            said.append(self.name)

    alternated({"a": Row("a"), "b": Row("b")}, 2)
    assert said == ["a ready", "a", "b ready", "b"] * 2
    [ratio] = ratios({"a": [2.0, 6.0, 8.0], "b": [1.0, 2.0, 2.0]}, [("a", "b"), ("a", "c")])
    assert ratio.values == (2.0, 3.0, 4.0) and ratio.median == 3.0
    assert Ratio("a", "b", (1.0, 5.0)).as_dict()["max"] == 5.0


def test_the_parts_for_gpus_run_here_in_miniature() -> None:
    small: Any = {"cross": [(1, 2, 5, 3, 4)], "features": [(1, 4, 8, 8)], "repeats": 1, "inner": 1}
    found = gpu.measured_kernels("cpu", ("float32",), **small)
    [row] = found["head_mean"]
    assert {r["slow"] for r in row["ratios"]} == {"explicit", "fused"}
    assert max(row["errors"]["fused"]) < 1e-5
    assert len(found["epilogue"]) == 3 and all(r["gb_s"] > 0 for r in found["epilogue"])
    screen, final = gpu.settings("cpu", batch=2, model="pixart-miniature", half="bfloat16")
    from dataclasses import replace

    made = measure(replace(screen, sets=("dift",), repeats=1))
    assert [r["name"] for r in made["cells"][0]["rows"]] == ["hooks bfloat16", FAST, "hooks bfloat16 batch 2"]
    assert final.compiled and final.modes == ("cold", "cached")


def test_without_a_gpu_one_sentence_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--check"]) == gpu.NO_DEVICE
    assert "no CUDA device" in capsys.readouterr().err


def test_the_page_says_what_the_files_say(tmp_path: Path) -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    empty = page.page(text, [])
    assert empty.count("unmeasured") >= len(DEMANDS)
    found = fabricated()
    made = page.page(text, [found])
    # 8 passes of encode and forward, 3 each, over one encode and 8 cut forwards: 24 / 6, and 144 / 26 with 48 passes
    assert "| 4.50 [4.00, 5.00] | sd15 256 px, 4 x 2 x 2 x 1 | 4.00 / 5.54 | 112% | yes |" in made
    assert "| **no** |" in page.page(text, [fabricated(3.0)]) and "**no**" not in page.page(text, [found])
    assert "1.82 / 2.08 | 96% | **no**, nor can it" in page.page(text, [fabricated(1.25, cut=1.4)])
    assert "1.82 / 2.08 | 137% | **no** |" in page.page(
        text, [fabricated(2.0, cut=1.4)]
    )  # above it, it is no limit
    with pytest.raises(KeyError, match="nothing"):
        page.page("<!-- begin: nothing -->\n<!-- end: nothing -->", [])
    assert page.main(["--check"]) == 0, "run python -m benchmarks.page"


def test_every_demand_on_a_processor_can_be_met_by_a_cell() -> None:
    for demand in DEMANDS:
        if isinstance(demand, KernelDemand):
            assert demand.part in ("head_mean", "epilogue")
        else:
            assert demand.layers in NAMES and demand.fast in (EXACT, FAST, parts.MAP)
            assert (demand.least is None) != (demand.most is None)


def test_parts_are_told_beside_what_their_flops_would_take(tmp_path: Path) -> None:
    common = ["--batch", "2", "--repeats", "2", "--output", str(tmp_path)]
    assert parts.main(["--model", "pixart-miniature", *common]) == 0
    [found] = read_all(tmp_path)
    for rows in (found["parts"]["float32"], found["parts"]["bfloat16"]):
        assert (
            rows.keys() == {"encode", "cut", "forward", parts.MAP, parts.EXPLICIT}
            and rows["cut"]["gflop"] < rows["forward"]["gflop"]
        )
        assert all(len(row["seconds"]) == 2 and row["share"] > 0 for row in rows.values())
    assert page.pieces([found]).count("pixart-miniature 64 px, batch 2") == 10
    asked = next(d for d in DEMANDS if isinstance(d, Demand) and d.fact == "parts")
    assert len(page._part_ratios(asked, found)) == 2


def fabricated(low: float = 4.0, cut: float = 0.5) -> dict[str, Any]:
    device = {"processor": "P", "cores": 2, "flags": [], "torch": "2", "diffusers": "0"}
    ratio = {
        "slow": "hooks bfloat16",
        "fast": FAST,
        "median": low + 0.5,
        "min": low,
        "max": low + 1,
        "values": [],
    }
    cell = {
        "set": "dift", "mode": "screen", "grid": {"prompts": 4, "images": 2, "seeds": 2, "timesteps": 1},
        "rows": [
            {"name": name, "dtype": "bfloat16", "difference": None, "seconds": [1.0], "first_seconds": 1.0,
             "images_per_second": 1.0, "share": 0.5}
            for name in ("hooks bfloat16", FAST)
        ],
        "ratios": [ratio], "gflop": {"encode": 2.0, "forward": 1.0, "cut": cut},
    }  # fmt: skip
    return {
        "device": device, "model": "sd15", "size": 256, "cells": [cell], "bandwidth": 1.0, "command": "c",
        "rates": {"bfloat16": {"mix": 1.0, "peak": 1.0, "covered": 1.0}},
    }  # fmt: skip


def test_results_that_are_committed_can_be_read() -> None:
    for found in read_all(FOLDER):
        assert found["schema"] == 1 and found["device"]["torch"]
