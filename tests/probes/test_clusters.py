"""Agreement of groups: against scikit-learn and scipy, equal at 1, independent near 0, whatever groups are called."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from gate.errors import ConfigurationError
from gate.probe import make_folds
from gate.probes.clusters import Clusters, matched_share, mutual_information, rand_index
from gate.sample import Sample, SampleSet
from gate.testing import check_probe


def samples(n: int = 32) -> SampleSet:
    rng = np.random.default_rng(0)
    return SampleSet(tuple(Sample(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(n)))


def table(a: np.ndarray, b: np.ndarray, k: int) -> np.ndarray:
    return np.bincount(a * k + b, minlength=k * k).reshape(k, k).astype(float)


@pytest.mark.parametrize("seed", range(5))
def test_agreements_are_those_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 4, 60)
    b = np.where(rng.random(60) < 0.6, (a + 1) % 4, rng.integers(0, 4, 60))
    found = table(a, b, 4)
    assert mutual_information(found) == pytest.approx(normalized_mutual_info_score(a, b))
    assert rand_index(found) == pytest.approx(adjusted_rand_score(a, b))
    best = max(found[np.arange(4), list(p)].sum() for p in _permutations(4))
    assert matched_share(found) == pytest.approx(best / 60)
    batched = np.stack([found, found.T, 3 * found])
    for measure in (mutual_information, matched_share):
        np.testing.assert_allclose(measure(batched), measure(found))


def _permutations(k: int) -> list[tuple[int, ...]]:
    import itertools

    return list(itertools.permutations(range(k)))


def test_one_group_on_both_sides_agrees() -> None:
    alone = np.array([[5.0, 0], [0, 0]])
    assert (mutual_information(alone), rand_index(alone), matched_share(alone)) == (1, 1, 1)


@pytest.mark.parametrize("agreement", ["nmi", "ari", "accuracy"])
def test_the_reference_agrees_with_itself_and_noise_with_nothing(agreement: str) -> None:
    rng = np.random.default_rng(0)
    known = samples()
    reference = rng.standard_normal((32, 8, 4, 4)).astype(np.float32)
    reference += 3 * rng.standard_normal((4, 8, 1, 1)).astype(np.float32)[np.arange(32) % 4]
    probe, folds = Clusters(prototypes=4, agreement=agreement), make_folds(known)  # type: ignore[arg-type]

    def error(maps: np.ndarray) -> float:
        rows = probe.compare(maps, reference, known, folds)
        return float(probe.error_of_sums(rows.sum(axis=0, dtype=float), np.array(32)))

    same, near = (
        error(reference),
        error(reference + 0.1 * rng.standard_normal(reference.shape).astype(np.float32)),
    )
    far = error(rng.standard_normal(reference.shape).astype(np.float32))
    assert same == pytest.approx(0, abs=1e-12) and same <= near < far
    assert far > 0.4
    assert error(7 * reference[:, :, ::-1]) < 0.3  # neither scale nor place of a global reading


def test_it_takes_no_settings_that_mean_nothing() -> None:
    with pytest.raises(ConfigurationError, match="2 prototypes"):
        Clusters(prototypes=1)


def test_it_keeps_the_contract() -> None:
    report = check_probe(Clusters)
    assert report.ok, str(report)
