"""What results say beside the shares: score probes, notes, pictures, and what a technique without a picture has."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from gate.probe import Probe
from gate.request import Request, Response
from gate.runs.states import joined, parted
from gate.screening import remarks
from gate.screening import results as results_module
from gate.screening.attempt import VANILLA
from gate.screening.bench import Bench, prepare
from gate.screening.config import make_config
from gate.screening.measure import measure
from gate.screening.measured import COSTS, SOME, Measured
from gate.screening.results import assemble
from gate.screening.stored import costs, unpack
from gate.technique import Technique
from tests.closed_form import ClosedForm, flat_samples, known_noise
from tests.screening.test_evidence import Absolute, Eps, Sign, Squared, Telling, Twice, row

__all__ = ["known_noise"]
pytestmark = pytest.mark.usefixtures("known_noise")


class PixelSign(Sign):
    name = "pixel-linear"


class Unscored(Probe):
    name, summary, source, needs, figure = "idle", "s", "worked by hand", "", ""

    def evaluate(self, features: Any, samples: Any, folds: Any) -> Any:
        return np.full(len(features), 0.25, np.float32)


class FromTheImage(Technique):
    """Starts from the clean latent, so nothing is generated."""

    name = "from-the-image"

    def start(self, request: Request) -> Request:
        return request.with_(x_t=request.batch.x0, eps=torch.zeros_like(request.eps), origin="clean")


class Slow(Technique):
    name = "slow"

    def denoise(self, request: Request, call_next: Any) -> Response:
        if request.origin == "noised":
            time.sleep(0.02)
        return call_next(request)


KINDS = {cls.name: cls for cls in (Twice, FromTheImage)}


@pytest.fixture
def bench() -> Bench:
    settings = {"timesteps": (1, 2), "seeds": 2, "layers": ("sum",), "image_samples": 3, "image_steps": 1}
    config = make_config({**settings, "folds": 2, "resamples": 200})
    metrics = [Squared(), Eps(), Absolute()]
    return prepare(ClosedForm(), flat_samples(), config, metrics, [Sign(), PixelSign(), Unscored()])


@pytest.fixture
def made(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    monkeypatch.setattr(results_module, "create_technique", lambda name: KINDS[name]())
    measured = {VANILLA: measure(bench, Technique())}
    measured |= {name: measure(bench, cls()) for name, cls in KINDS.items()}
    return assemble(bench, measured, [])


def test_one_probe_scores_the_first_that_there_is(bench: Bench, made: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(KINDS, "telling", Telling)
    measured = {VANILLA: measure(bench, Technique()), "telling": measure(bench, Telling())}
    results, _, _ = assemble(bench, measured, [])
    assert list(results["score"]["probes"]) == ["pixel-linear"]
    assert set(results["vanilla"]["probes"]) == {"linear", "pixel-linear", "idle"}
    assert results["vanilla"]["probes"]["idle"] == pytest.approx(0.25)


def test_a_probe_by_which_nobody_beats_chance_is_left_out_with_a_note(made: Any) -> None:
    results, _, _ = made  # every feature is positive, whatever the label: one class for all
    assert list(results["score"]["probes"]) == [] and results["basis"] == "shift only"
    found = row(results, "twice")
    assert found["probe_gain"] is None and results["score"]["rule"]["name"] == ""
    assert set(found["probes"]) == {"linear", "pixel-linear", "idle"}, "it is reported all the same"
    assert any(n.startswith("'pixel-linear', 'linear' read no more than chance") for n in results["notes"])


def test_vanillas_figures_are_means_over_timesteps(made: Any) -> None:
    # at t = 2, a = 0.6 and s = 0.8: x = (0.6 + 0.8 e, 0.8 e), eps_hat = x / 2. Seed 0: (1.4, 0.8), errors 0.09, 0.36;
    # seed 1: (3, 2.4), errors 2.25 and 3.24. Means 0.225 and 2.745, over seeds 1.485; at t = 1 it is 1.97.
    assert made[0]["vanilla"]["metrics"]["eps"] == pytest.approx((1.97 + 1.485) / 2, abs=1e-6)


def test_arrays_and_pictures_are_each_where_they_belong(made: Any) -> None:
    _, arrays, pictures = made
    assert arrays["shift/cosine"].shape == (3, 2, 2, 1, 12) and arrays["prediction/eps"].shape == (
        3,
        2,
        2,
        12,
    )
    assert arrays["probe/linear"].shape == (3, 2, 2, 12, 2, 2) and arrays["probe/idle"].shape == (3, 2, 2, 12)
    assert arrays["image/image"].shape == (3, 3) and arrays["feature-scale"].shape == (3, 1)
    assert pictures["input"].shape == (3, 2, 2, 3) and pictures["reconstruction"].shape == (3, 3, 2, 2, 3)
    assert pictures["pca"].shape[:2] == (3, 2) and pictures["pca_image"].shape == (2, 2, 2, 3)


def test_counts_add_up_over_seeds_other_numbers_are_averaged_and_sets_keep_them_apart() -> None:
    class Whole(Unscored):
        name = "whole"

        def error_of_set(self, columns: Any, multiplicities: Any) -> Any:
            return multiplicities.sum(-1)

    numbers = np.arange(2 * 2 * 3, dtype=np.float32).reshape(2, 2, 3)  # timesteps, seeds, samples
    counts = np.stack([numbers, numbers], -1).astype(np.int16)
    over = results_module._over_seeds
    assert over(Sign(), counts).tolist() == (counts[:, 0] + counts[:, 1]).swapaxes(0, 1).tolist()
    assert over(Unscored(), numbers).tolist() == numbers.mean(1).T.tolist()
    assert over(Whole(), numbers).tolist() == numbers.reshape(4, 3).T.tolist()


def test_what_generates_nothing_has_no_picture_and_says_so(made: Any) -> None:
    results, arrays, pictures = made
    assert results["axes"]["image_sample"] == results["axes"]["sample"][:3]
    assert row(results, "from-the-image")["images"] == {"image": None}
    assert row(results, "twice")["images"]["image"]["n"] == 3
    last = results["axes"]["technique"].index("from-the-image")
    assert np.isnan(arrays["image/image"][last]).all() and (pictures["reconstruction"][last] == 128).all()


def test_maps_of_tokens_are_noted(bench: Bench) -> None:
    assert remarks._map_notes(bench) == []
    for layer in ("attention", "up1.attention0.block0.cross.map"):
        (note,) = remarks._map_notes(replace(bench, layers=("sum", layer)))
        assert note.startswith(f"A channel of {layer} is a token")


def test_time_is_that_of_the_passes_a_pass_and_image(bench: Bench) -> None:
    found = measure(bench, Slow())
    assert 1000 * 0.02 / 12 <= found.ms < 1000 * 0.2 / 12  # one batch of twelve a pass


def test_counts_stay_small_where_they_can() -> None:
    small, large = np.full((1, 2, 3), 16000, np.int16), np.full((1, 3, 3), 16000, np.int16)
    assert results_module._room(small) == np.int16 and results_module._room(large) == np.int32


def test_what_the_scores_and_pictures_hold_is_all_that_was_measured() -> None:
    """Every field goes into the arrays of a run and comes back out of them, there or not: results can be made anew."""
    rng = np.random.default_rng(0)
    tables: dict[str, Any] = {
        "state": {"of/candidates": rng.integers(0, 9, 3, np.uint8), "scale": np.array(0.5)},
        "shift": {
            "cka@own": rng.random((2, 1, 3, 5), np.float32),
            "cka": rng.random((2, 1, 3, 5), np.float32),
        },
        "prediction": {"eps": rng.random((2, 1, 5), np.float32)},
        "counts": {"linear": rng.integers(0, 9, (2, 1, 5, 2, 2), np.int16)},
        "refit": {"linear": rng.random((2, 1, 5), np.float32)},
        "image": {"image": rng.random(4, np.float32)},
        "scale": rng.random(3, np.float32),
        "reconstructions": rng.integers(0, 255, (4, 8, 8, 3), np.uint8),
        "pca": rng.random((2, 4, 4, 3), np.float32),
    }
    numbers = {f.name: float(i) for i, f in enumerate(fields(Measured)) if f.name in COSTS}
    some = {name: rng.random((2, 3), np.float32) for name in SOME}
    assert {f.name for f in fields(Measured)} == {*tables, *numbers, *some}, "a field that no run keeps"
    measured = {VANILLA: Measured(**tables, **numbers), "stranger": Measured(**tables, **numbers, **some)}
    arrays = results_module._dense(measured, ["stranger"])
    pictures = {
        "reconstruction": np.stack([tables["reconstructions"]] * 2),
        "pca": np.stack([tables["pca"]] * 2),
    }
    states = parted(joined({name: m.state for name, m in measured.items()}), measured)
    back = unpack(costs(measured), arrays, pictures, states)
    assert list(back) == list(measured)
    for name, made in measured.items():
        for each in fields(Measured):
            ours, theirs = getattr(made, each.name), getattr(back[name], each.name)
            if isinstance(ours, dict):
                assert list(ours) == list(theirs)
                assert all(np.array_equal(ours[k], theirs[k]) for k in ours)
            else:
                assert (theirs is None) == (ours is None) and np.array_equal(ours, theirs), each.name
