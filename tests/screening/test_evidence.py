"""From passes to evidence on a backbone worked out by hand: every figure here is on paper first (tests/closed_form.py).

At t = 1 the features of vanilla are (1.4, 0.6) for seed 0 and (2.6, 1.8) for seed 1; F_ref is (1, 0). The mean squared
distance is (0.16 + 0.36) / 2 = 0.26 and (2.56 + 3.24) / 2 = 2.9, over seeds 1.58. eps_hat = (0.7, 0.3) and (1.3, 0.9):
squared errors (0.09 + 0.49) / 2 = 0.29 and (2.89 + 4.41) / 2 = 3.65, over seeds 1.97.
"""

# long: every figure is worked out from the numbers of one backbone, which stand at its head
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from gate.errors import PluginError
from gate.metric import Metric, Pass
from gate.metrics.eps import Eps
from gate.probe import Probe, label_counts
from gate.ranking.rules import Rules
from gate.request import Request, Response
from gate.screening import remarks
from gate.screening import results as results_module
from gate.screening.attempt import VANILLA
from gate.screening.bench import Bench, prepare
from gate.screening.config import make_config
from gate.screening.measure import measure, tally
from gate.screening.measured import Measured, Tally
from gate.screening.results import assemble
from gate.technique import Technique
from tests.closed_form import UNIT, ClosedForm, flat_samples, known_noise

__all__ = ["known_noise"]
pytestmark = pytest.mark.usefixtures("known_noise")


class Squared(Metric):
    """Under a name that the score reads; the formula is the plainest there is."""

    name = "cosine"
    summary = "mean squared distance"
    source = "worked by hand"
    unit = "squared"
    weakness = "none worth naming"
    scale_invariant = True

    def shift(self, features: Any, reference: Any) -> Any:
        return (features - reference).square().mean(dim=(1, 2, 3))


class Absolute(Metric):
    name = "image"
    summary = "mean absolute distance of red and green, in units of the latent"
    source = "worked by hand"
    unit = "latent"
    weakness = "none worth naming"
    compares = "image"

    def distance(self, image: Any, reconstruction: Any) -> Any:
        return (image - reconstruction)[:, :2].abs().mean(dim=(1, 2, 3)) / UNIT


class Likeness(Absolute):
    """The same the other way up: 1 is perfect."""

    name, direction, range = "likeness", "higher", (-1.0, 1.0)

    def distance(self, image: Any, reconstruction: Any) -> Any:
        return 1 - super().distance(image, reconstruction)


class Slope(Metric):
    """How the prediction follows the latent: 1 / 2 for vanilla."""

    name, summary, source, unit, weakness = "slope", "s", "worked by hand", "1", "none worth naming"
    compares, needs = "pass", frozenset({"gradients", "second-pass"})

    def measure(self, seen: Pass) -> Any:
        x = seen.request.x_t.clone().requires_grad_()
        assert seen.again is not None
        prediction = seen.again(seen.request.with_(x_t=x)).prediction
        (slope,) = torch.autograd.grad(prediction.sum(), x)
        return slope.mean(dim=(1, 2, 3))


class Sign(Probe):
    """Label 1 where the features are positive."""

    name = "linear"
    summary = "sign"
    source = "worked by hand"

    def evaluate(self, features: Any, samples: Any, folds: Any) -> Any:
        truth = np.array([s.label for s in samples])
        return label_counts(truth, (features.mean(axis=(1, 2, 3)) > 0).astype(int), 2)


class Push(Technique):
    """A prompt that adds 0.5 to every feature, noisy or clean."""

    name, summary = "push", "push"

    def condition(self, conditioning: Any, batch: Any) -> Any:
        return conditioning.with_text(batch.backbone.encode_prompts(["0.5"] * len(batch)))


class Lower(Technique):
    """x0_hat less 0.3: at a / s = 4 / 3 the implied eps_hat grows by 0.4."""

    name, summary = "lower", "lower"

    def denoise(self, request: Request, call_next: Any) -> Response:
        response = call_next(request)
        return response.with_(x0=response.x0 - 0.3)


class Twice(Technique):
    """Twice the prediction: eps_hat = x_t."""

    name, summary = "twice", "twice"

    def denoise(self, request: Request, call_next: Any) -> Response:
        prediction = 2 * call_next(request).prediction
        x0 = request.batch.backbone.schedule.x0_from(prediction, request.x_t, request.t)
        return call_next(request).with_(prediction=prediction, x0=x0)


class Downhill(Technique):
    """A step down the gradient of ||eps_hat||^2 = ||x / 2||^2, which is x / 2: the latent is halved."""

    name, summary = "downhill", "downhill"

    def denoise(self, request: Request, call_next: Any) -> Response:
        with torch.enable_grad():
            x = request.x_t.clone().requires_grad_()
            away = (x * request.batch.x0).sum() * 0  # what is given may be part of the graph
            loss = call_next(request.with_(x_t=x)).prediction.square().sum() + away
            (slope,) = torch.autograd.grad(loss, x)
        return call_next(request.with_(x_t=request.x_t - slope))


class Leaking(Twice):
    name, leak = "leaking", "it is said to"


class Control(Twice):
    name, negative_control = "losing", True


class Telling(Leaking):
    """Leaks as well, but its features say the label: the sign of the last channel's bias."""

    name = "telling"

    def denoise(self, request: Request, call_next: Any) -> Response:
        response = super().denoise(request, call_next)
        blues = [int(s.image[0, 0, 2]) for s in request.batch.samples]  # odd ones are the second class
        signs = torch.tensor([2.0 * (blue % 2) - 1 for blue in blues])
        return response.with_(
            features={
                k: torch.ones_like(v) * signs[:, None, None, None] for k, v in response.features.items()
            }
        )


class Once(Telling):
    """Tells the label under the noise of the second seed alone."""

    name = "once"

    def denoise(self, request: Request, call_next: Any) -> Response:
        return (super() if request.seed else super(Telling, self)).denoise(request, call_next)


TECHNIQUES = {cls.name: cls for cls in (Push, Lower, Twice, Leaking, Control, Telling, Once)}


@pytest.fixture
def bench() -> Bench:
    settings = {"timesteps": (1,), "seeds": 2, "layers": ("sum",), "image_samples": 2, "image_steps": 1}
    config = make_config({**settings, "folds": 2, "resamples": 200})
    return prepare(
        ClosedForm(), flat_samples(), config, [Squared(), Eps(), Absolute(), Likeness(), Slope()], [Sign()]
    )


@pytest.fixture
def assembled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    monkeypatch.setattr(results_module, "create_technique", lambda name: TECHNIQUES[name]())
    monkeypatch.setattr(
        remarks, "load_rules", lambda: Rules(source="none", rules={})
    )  # weights score, by hand
    measured = {VANILLA: measure(bench, Technique())}
    measured |= {name: measure(bench, cls()) for name, cls in TECHNIQUES.items()}
    results, _, _ = assemble(bench, measured, [])
    yield results


def row(results: Any, name: str) -> Any:
    return next(r for r in results["ranking"] if r["name"] == name)


def near(expected: Any) -> Any:
    return pytest.approx(expected, abs=1e-6)


def test_vanilla_by_hand(bench: Bench) -> None:
    found = measure(bench, Technique())
    for key in ("cosine", "cosine@own"):
        assert found.shift[key].shape == (1, 2, 1, 12)
        np.testing.assert_allclose(found.shift[key][0, :, 0], np.repeat([[0.26], [2.9]], 12, 1), rtol=1e-5)
    np.testing.assert_allclose(found.prediction["eps"][0], np.repeat([[0.29], [3.65]], 12, 1), rtol=1e-5)
    # t = 2: x = (0.6 + 0.8, 0.8), x0_hat = x (1 - 0.8 / 2) / 0.6 = x: (1.4, 0.8) beside (1, 0)
    np.testing.assert_allclose(found.image["image"], [0.6, 0.6], rtol=1e-5)
    assert (found.per_image, found.per_pass, found.calls) == (0, 1, 1)


def test_what_a_prompt_adds_everywhere_counts_against_vanillas_reference_and_not_against_its_own(
    bench: Bench,
) -> None:
    found = measure(bench, Push())
    # beside F_ref: (0.81 + 1.21) / 2 and (4.41 + 5.29) / 2; beside its own (1.5, 0.5): vanilla's distances
    np.testing.assert_allclose(found.shift["cosine"][0, :, 0, 0], [1.01, 4.85], rtol=1e-5)
    np.testing.assert_allclose(found.shift["cosine@own"][0, :, 0, 0], [0.26, 2.9], rtol=1e-5)


def test_an_error_of_x0_becomes_one_of_eps_by_a_over_s(bench: Bench) -> None:
    found = measure(bench, Lower())
    # eps_hat = (1.1, 0.7) and (1.7, 1.3): (0.01 + 0.09) / 2 and (1.69 + 2.89) / 2
    np.testing.assert_allclose(found.prediction["eps"][0, :, 0], [0.05, 2.29], rtol=1e-4)


def test_a_technique_may_take_gradients(bench: Bench) -> None:
    found = measure(bench, Downhill())
    # eps_hat = x / 4, x0_hat = (x / 2 - 0.6 x / 4) / 0.8 = 7 x / 16: (0.6125, 0.2625) and (1.1375, 0.7875); the noise
    # that they imply at x_t is (1.516667, 0.65) and (2.816667, 1.95)
    np.testing.assert_allclose(found.prediction["eps"][0, :, 0], [0.194722, 0.568056], rtol=1e-4)
    assert found.calls == 2


def test_shares_of_vanillas_error_over_both_seeds(assembled: Any) -> None:
    push, lower, twice = (row(assembled, name)["metrics"] for name in ("push", "lower", "twice"))
    assert push["cosine"]["value"] == near(1 - 2.93 / 1.58)  # over seeds (1.01 + 4.85) / 2 = 2.93
    assert push["cosine@own"]["value"] == near(0)
    assert push["eps"]["value"] == near(0)
    assert lower["eps"]["value"] == near(1 - 1.17 / 1.97)
    assert twice["eps"]["value"] == near(1 - 0.48 / 1.97)  # (0.16 + 0.16) / 2 and (0.16 + 1.44) / 2
    assert twice["cosine"]["value"] == near(0)


def test_the_image_share_by_hand(assembled: Any) -> None:
    # x0_hat = x (1 - 0.8) / 0.6 = x / 3: |1.4 / 3 - 1| and 0.8 / 3, mean 0.4 beside vanilla's 0.6
    assert row(assembled, "twice")["images"]["image"]["value"] == near(1 / 3)
    assert row(assembled, "push")["images"]["image"]["value"] == near(0)


def test_every_image_metric_is_reported_the_right_way_up(assembled: Any) -> None:
    assert row(assembled, "twice")["images"]["likeness"]["value"] == near(1 / 3)
    assert set(row(assembled, "push")["images"]) == {"image", "likeness"}


def test_a_metric_of_whole_passes_may_take_gradients_of_another_which_is_not_counted(
    bench: Bench, assembled: Any
) -> None:
    found = measure(bench, Twice())
    np.testing.assert_allclose(found.prediction["slope"], 1.0)
    assert found.calls == 2  # the technique calls twice; the metric's own pass is not its
    assert assembled["vanilla"]["metrics"]["slope"] == near(0.5)
    assert row(assembled, "twice")["metrics"]["slope"]["value"] == near(-1)
    assert row(assembled, "push")["metrics"]["slope"]["value"] == near(0)


def test_the_score_is_half_suppression_half_probe_gain(assembled: Any) -> None:
    twice, telling = row(assembled, "twice"), row(assembled, "telling")
    eps = 1 - 0.48 / 1.97
    assert twice["suppression"] == near((0 + eps) / 2) and twice["probe_gain"] == near(0)
    assert twice["score"] == near(eps / 4)
    # vanilla calls every sample 1: recall 1 and 0, half the error; telling makes none, and no shift to itself
    assert telling["suppression"] == near((1 + eps) / 2) and telling["probe_gain"] == near(1)
    assert telling["score"] == near((1 + eps) / 4 + 1 / 2)


def test_probes_count_over_both_seeds(assembled: Any) -> None:
    # label 0 is found under one seed of two: recall 1 / 2 and 1, an error of 1 / 4 beside vanilla's 1 / 2
    assert row(assembled, "once")["probe_gain"] == near(1 / 2)


def test_a_leak_wins_by_its_probe_alone_and_a_control_never(assembled: Any) -> None:
    better = {r["name"] for r in assembled["ranking"] if r["verdict"] == "better"}
    assert {"twice", "leaking", "losing", "telling", "lower"} <= better
    assert assembled["winners"] == ["telling", "once", "twice"]  # three at most; lower comes after them


@pytest.mark.parametrize(
    ("rows", "refits", "words"),
    [
        (slice(1, None), None, "gives {less} rows for {n} samples"),
        (slice(None), (slice(1, None),), "tells refits of shape"),
        (slice(None), (slice(None), None), "tells refits of shape"),  # (n, 1)
    ],
    ids=["rows", "refits", "columns"],
)
def test_what_a_probe_gives_is_of_these_samples(
    bench: Bench, rows: slice, refits: tuple[slice | None, ...] | None, words: str
) -> None:
    n = len(bench.samples)

    class Off(Sign):
        def judge(self, features: Any, samples: Any, folds: Any) -> Any:
            values = self.evaluate(features, samples, folds)
            return values[rows], None if refits is None else np.zeros(n)[refits]

    maps = np.ones((n, 2, 4, 4), np.float32)
    values, told = bench.judged(Sign(), maps)
    assert len(values) == n and told is None
    with pytest.raises(PluginError, match=words.format(less=n - 1, n=n)):
        bench.judged(Off(), maps)


def test_tallies_of_neighbouring_slices_join_to_the_whole(bench: Bench) -> None:
    for technique in (Technique(), Push(), Telling()):
        whole = measure(bench, technique)
        slices = [slice(0, 3), slice(3, 4), slice(4, 12)]
        for size in (0, 2):
            parts = [tally(bench, technique, rows=rows, batch_size=size) for rows in slices]
            _same(whole, Tally.join(parts).measured())


class Witness(Slope):
    """Looks at what a pass is shown with; gives nothing."""

    name, needs = "witness", frozenset()

    def measure(self, seen: Pass) -> Any:
        first = {"request": seen.request.x_t[0, :, 0, 0].tolist(), "again": seen.again}
        for what in ("response", "reference", "own"):
            features = getattr(seen, what)
            features = features.features if what == "response" else features
            first[what] = features["sum"][0, :, 0, 0].tolist()
        self.seen = first
        return torch.zeros(len(seen.request.batch))


def test_a_metric_of_whole_passes_is_shown_both_references_and_no_way_to_pass_again_unless_it_asks() -> None:
    config = make_config({"timesteps": (1,), "seeds": 1, "layers": ("sum",), "image_samples": 0, "folds": 2})
    witness = Witness()
    measure(prepare(ClosedForm(), flat_samples(), config, [witness], []), Push())
    assert witness.seen.pop("again") is None
    for what, expected in (
        ("request", [1.4, 0.6]),
        ("response", [1.9, 1.1]),
        ("reference", [1.0, 0.0]),
        ("own", [1.5, 0.5]),
    ):
        assert witness.seen[what] == near(expected), what


class X0(Eps):
    name = "x0"

    def error(self, *, eps: Any, eps_hat: Any, x0: Any, x0_hat: Any) -> Any:
        return (x0_hat - x0).mean(dim=(1, 2, 3))


class Still(Technique):
    """Says that no seed matters."""

    name, summary, seedless = "still", "still", True


class Clean(Technique):
    """No noise went in, so nothing is generated."""

    name, summary, seedless = "clean", "clean", True

    def start(self, request: Request) -> Request:
        return request.batch.clean_request(request.conditioning)


def test_what_starts_clean_generates_no_image_and_says_so() -> None:
    config = make_config({"timesteps": (1,), "seeds": 1, "layers": ("sum",), "image_samples": 5, "folds": 2})
    bench = prepare(ClosedForm(), flat_samples(), config, [Absolute(), X0()], [])
    for batch_size in (4, 12):
        found = measure(bench, Clean(), batch_size=batch_size)
        assert found.image["image"].shape == (5,) and np.isnan(found.image["image"]).all()
        assert found.reconstructions is not None
        assert found.reconstructions.shape == (5, 2, 2, 3) and (found.reconstructions == 128).all()
    # vanilla's x0_hat = x (1 - 0.3) / 0.8: 1.225 and 0.525 beside 1 and 0
    np.testing.assert_allclose(measure(bench, Technique()).prediction["x0"], 0.375, rtol=1e-4)


def test_progress_counts_noised_rows_for_every_seed(bench: Bench) -> None:
    for technique, ticks in ((Technique(), [8, 8, 4, 4]), (Still(), [16, 8])):
        told: list[int] = []
        measure(bench, technique, told.append, batch_size=8)
        assert told == ticks  # two seeds, or one that stands for both, of 12 samples: 24 in all


def test_the_scale_of_features_and_the_time_of_a_pass(bench: Bench) -> None:
    found = measure(bench, Technique(), batch_size=8)
    # (1.96 + 0.36) / 2 = 1.16 and (6.76 + 3.24) / 2 = 5: 3.08 over seeds
    np.testing.assert_allclose(found.scale, [3.08**0.5], rtol=1e-5)  # type: ignore[arg-type]
    assert 0 < found.ms < 1000


@pytest.mark.parametrize("batch_size", [8, 12])
def test_the_picture_is_of_the_last_timestep_and_the_first_seed_from_the_first_samples(
    monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    monkeypatch.setattr("gate.screening.measured.pca_image", lambda f, basis: f[:, :, 0, 0].numpy())
    settings = {"timesteps": (1, 2), "seeds": 2, "layers": ("sum",), "image_samples": 0, "folds": 2}
    bench = prepare(ClosedForm(), flat_samples(), make_config(settings), [Squared()], [])
    found = measure(bench, Technique(), batch_size=batch_size)
    np.testing.assert_allclose(found.pca, [[1.4, 0.8]] * 2, rtol=1e-5)  # type: ignore[arg-type]


def test_one_seed_stands_for_all_where_none_plays_a_part(bench: Bench) -> None:
    found = measure(bench, Still())
    np.testing.assert_allclose(found.shift["cosine"][0, :, 0, 0], [0.26, 0.26], rtol=1e-5)
    assert found.shift["cosine@own"].shape == (1, 2, 1, 12)
    assert found.prediction["eps"].shape == (1, 2, 12) and found.counts["linear"].shape == (1, 2, 12, 2, 2)


def test_reconstructions_are_kept_as_pixels(bench: Bench) -> None:
    kept = measure(bench, Technique()).reconstructions  # 1.4 and 0.8 times 128: 179.2 and 102.4
    assert kept is not None and kept.shape == (2, 2, 2, 3)
    assert (kept == [179, 102, 0]).all()


class Pair(Squared):
    """Two columns."""

    name, columns_each = "pair", 2

    def shift(self, features: Any, reference: Any) -> Any:
        found = super().shift(features, reference)
        return torch.stack([found, 2 * found], dim=-1)

    def error_of_sums(self, sums: Any, n: Any) -> Any:
        return sums[..., 0] / sums[..., 1]


def test_columns_of_a_metric_are_the_last_axis() -> None:
    config = make_config({"timesteps": (1,), "seeds": 2, "layers": ("sum",), "image_samples": 0, "folds": 2})
    bench = prepare(ClosedForm(), flat_samples(), config, [Pair()], [])
    found = measure(bench, Technique())
    assert found.shift["pair"].shape == (1, 2, 1, 12, 2)
    np.testing.assert_allclose(found.shift["pair"][0, :, 0, 0], [[0.26, 0.52], [2.9, 5.8]], rtol=1e-5)
    pair = results_module._evidence(bench, found).shifts["pair"]  # over seeds, a cell for the one layer
    assert pair.shape == (12, 1, 2)
    np.testing.assert_allclose(pair[0], [[1.58, 3.16]], rtol=1e-5)


class SetOfSigns(Sign):
    """A statistic of the set, by a formula that does not matter here."""

    name = "set-of-signs"

    def error_of_set(self, columns: Any, multiplicities: Any) -> Any:
        raise NotImplementedError


def test_each_seed_is_a_cell_of_a_statistic_of_the_set() -> None:
    values = np.arange(48).reshape(2, 3, 4, 2)  # (t, s, n, columns)
    cells = results_module._over_seeds(SetOfSigns(), values)
    assert cells.shape == (4, 6, 2)
    assert np.array_equal(cells[1, 4], values[1, 1, 1])


def test_sums_over_seeds_have_room_and_scales_are_geometric_means() -> None:
    for most, room in ((16000, np.int16), (17000, np.int32)):  # twice 16383 is the last that fits
        assert results_module._room(np.full((1, 2, 3, 2, 2), most, np.int16)) is room
    loud, plain = (Measured(scale=np.array(s, np.float32)) for s in ([4.0, 8.0], [2.0, 1.0]))
    assert results_module._scale(loud, plain) == near(4)  # of 2 and 8


def _same(a: Measured, b: Measured) -> None:
    for name in ("shift", "prediction", "counts", "image"):
        ours, theirs = getattr(a, name), getattr(b, name)
        assert set(ours) == set(theirs)
        for key in ours:
            np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-6, err_msg=f"{name} {key}")
    assert np.array_equal(a.reconstructions, b.reconstructions)  # type: ignore[arg-type]
    np.testing.assert_allclose(a.pca, b.pca)  # type: ignore[arg-type]
    np.testing.assert_allclose(a.scale, b.scale)  # type: ignore[arg-type]
    assert (a.per_image, a.per_pass) == (b.per_image, b.per_pass)
