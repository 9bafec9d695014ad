"""check_metric lets every metric of ours through, and names what is wrong with each wrong one."""

import pytest
import torch

from gate.metric import Metric
from gate.testing import check_metric

OURS = ("cka", "cosine", "eps", "image", "laplacian", "laplacian-normalised")


class Distance(Metric):
    """A right metric; each wrong one below differs in the one thing that its check is for."""

    name = "distance"
    summary = "mean squared difference"
    source = "these tests"
    unit = "squared feature units"
    weakness = "Follows the scale."

    def shift(self, features, reference):
        return (features.float() - reference.float()).square().mean(dim=(1, 2, 3))


class Likeness(Distance):
    name = "likeness"
    direction = "higher"
    range = (0.0, 1.0)

    def shift(self, features, reference):
        return torch.exp(-super().shift(features, reference))


class Turned(Likeness):
    name = "turned"
    direction = "lower"


class OutOfRange(Distance):
    name = "out-of-range"
    range = (0.0, 1e-3)


class OneForAll(Distance):
    name = "one-for-all"

    def shift(self, features, reference):
        return super().shift(features, reference).mean()


class BatchMean(Distance):
    name = "batch-mean"

    def shift(self, features, reference):
        each = super().shift(features, reference)
        return each / each.mean().clamp_min(1e-6)


class Dice(Distance):
    name = "dice"

    def shift(self, features, reference):
        each = super().shift(features, reference)
        return each * torch.rand_like(each)


class Writes(Distance):
    name = "writes"

    def shift(self, features, reference):
        each = super().shift(features, reference)
        features.mul_(0.5)
        return each


class HidesNan(Distance):
    name = "hides-nan"

    def shift(self, features, reference):
        return super().shift(features, reference).nan_to_num()


class ClaimsScale(Distance):
    name = "claims-scale"
    scale_invariant = True


class Halves(Distance):
    name = "halves"

    def shift(self, features, reference):
        return (features - reference).square().mean(dim=(1, 2, 3))


class LargeMapsOnly(Distance):
    name = "large-maps-only"

    def shift(self, features, reference):
        return super().shift(features[..., 4:, 4:], reference[..., 4:, 4:])


class NegativeError(Distance):
    name = "negative-error"

    def error_of_sums(self, sums, n):
        return -sums[..., 0] / n


@pytest.mark.parametrize("name", OURS)
def test_ours_keep_the_contract(name):
    check_metric(name).raise_for_failures()


@pytest.mark.parametrize("right", [Distance, Likeness])
def test_either_direction_passes(right):
    check_metric(right).raise_for_failures()


@pytest.mark.parametrize(
    ("wrong", "invariant"),
    [
        (Turned, "the direction is the one stated"),
        (OutOfRange, "one row a sample, within its range"),
        (OneForAll, "one row a sample, within its range"),
        (BatchMean, "independent of batch size and order"),
        (Dice, "deterministic, and writes to nothing that it is given"),
        (Writes, "deterministic, and writes to nothing that it is given"),
        (HidesNan, "passes NaN on, in its own sample"),
        (ClaimsScale, "scale_invariant is true"),
        (Halves, "takes half precision"),
        (LargeMapsOnly, "takes maps of any shape"),
        (NegativeError, "errors of resamples"),
    ],
)
def test_what_is_wrong_is_named(wrong, invariant):
    assert invariant in [f.invariant for f in check_metric(wrong).failures]
