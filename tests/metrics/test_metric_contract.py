"""What holds for every metric: facts, refusal, batch independence, NaN, scale."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from gate.errors import PluginError
from gate.metric import Metric
from gate.metrics.cka import Cka
from gate.metrics.cosine import Cosine
from gate.metrics.eps import Eps
from gate.metrics.image import Image
from gate.metrics.laplacian import Laplacian
from gate.metrics.laplacian_normalised import LaplacianNormalised

EVERY: tuple[type[Metric], ...] = (Laplacian, LaplacianNormalised, Cosine, Cka, Eps, Image)


def measure(metric: Metric, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a is the measured side, b the truth."""
    if metric.compares == "feature":
        return metric.shift(a, b)
    if metric.compares == "prediction":
        return metric.error(eps=b, eps_hat=a, x0=b, x0_hat=a)
    return metric.distance(b, a)


def pair(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=generator, dtype=dtype), torch.rand(
        shape, generator=generator, dtype=dtype
    )


def shape_for(metric: Metric, b: int = 8) -> tuple[int, ...]:
    return (b, 3, 16, 16) if metric.compares == "image" else (b, 24, 8, 8)


@pytest.mark.parametrize("cls", EVERY)
def test_facts(cls):
    assert cls.direction == "lower"
    assert cls.weakness.endswith(".")
    assert not cls.summary.endswith(".")


@pytest.mark.parametrize("cls", EVERY)
def test_batch_of_one_is_batch_of_eight_in_any_order(cls):
    metric = cls()
    a, b = pair(*shape_for(metric))
    whole = measure(metric, a, b)
    single = torch.cat([measure(metric, x[None], y[None]) for x, y in zip(a, b, strict=True)])
    assert whole.shape == (8,)
    torch.testing.assert_close(single, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(measure(metric, a.flip(0), b.flip(0)).flip(0), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", EVERY)
def test_not_negative_and_zero_for_the_reference_itself(cls):
    metric = cls()
    a, b = pair(*shape_for(metric))
    assert (measure(metric, a, b) > 0).all()
    torch.testing.assert_close(measure(metric, b, b), torch.zeros(8), atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [4, 100])
@pytest.mark.parametrize("cls", [c for c in EVERY if c.compares != "image"])
def test_the_reference_itself_is_exactly_zero_away(cls, channels):
    b = pair(8, channels, 8, 8)[1]
    assert (measure(cls(), b, b.clone()) <= 1e-15).all()


@pytest.mark.parametrize("cls", EVERY)
def test_scale_invariance_is_as_stated(cls):
    metric = cls()
    a, b = pair(*shape_for(metric), dtype=torch.float64)
    same = torch.allclose(measure(metric, 0.5 * a, b), measure(metric, a, b), rtol=1e-6)
    assert same == cls.scale_invariant


@pytest.mark.parametrize("channels", [3, 100])  # both forms of CKA
@pytest.mark.parametrize("cls", EVERY)
def test_nan_is_passed_on_and_stays_in_its_sample(cls, channels):
    metric = cls()
    a, b = pair(4, 3 if metric.compares == "image" else channels, 8, 8)
    a[1, 0, 4, 4] = torch.nan
    assert torch.isnan(measure(metric, a, b)).tolist() == [False, True, False, False]


@pytest.mark.parametrize("cls", EVERY)
def test_half_precision_is_summed_in_single(cls):
    metric = cls()
    a, b = pair(*shape_for(metric))
    got = measure(metric, a.half(), b.half())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, measure(metric, a.half().float(), b.half().float()))


@pytest.mark.parametrize("cls", EVERY)
def test_shapes_that_would_broadcast_are_refused(cls):
    metric = cls()
    a, b = pair(*shape_for(metric))
    with pytest.raises(ValueError, match="one shape"):
        measure(metric, a, b[:1])


@pytest.mark.parametrize("cls", [Laplacian, LaplacianNormalised, Cosine])
def test_what_is_kept_of_a_reference_follows_what_is_written_to_it(cls):
    metric = cls()
    a, b = pair(*shape_for(metric))
    first = measure(metric, a, b)
    assert torch.equal(measure(metric, a, b), first)
    b.mul_(3).add_(a)
    assert torch.equal(measure(metric, a, b), measure(metric, a.clone(), b.clone()))
    with torch.inference_mode():
        c = b * 2
        before = measure(metric, a, c)
        c.copy_(a)
        assert (measure(metric, a, c) < before).all()


def test_the_wrong_method_is_refused_by_name():
    f = torch.zeros(1, 3, 4, 4)
    with pytest.raises(PluginError, match="'eps' compares 'prediction': it has `error`, not `shift`"):
        Eps().shift(f, f)


def test_a_metric_without_facts_or_method_is_refused_where_it_is_written():
    with pytest.raises(PluginError, match="'bare' does not state its summary"):
        type("Bare", (Metric,), {"name": "bare"})
    facts = {"name": "idle", "summary": "s", "source": "s", "unit": "u", "weakness": "w"}
    with pytest.raises(PluginError, match="must define `shift`"):
        type("Idle", (Metric,), facts)
    with pytest.raises(PluginError, match="it is one of"):
        type("Odd", (Metric,), {**facts, "compares": "sound"})
    with pytest.raises(PluginError, match="no end there"):
        type("Endless", (Metric,), {**facts, "direction": "higher"})


def test_listing_metrics_and_probes_loads_nothing_heavy():
    modules = [c.__module__ for c in EVERY]
    modules += ["gate.probe", "gate.probes.linear", "gate.probes.pixel_linear", "gate.probes.knn"]
    code = (
        f"import sys, importlib; [importlib.import_module(m) for m in {modules!r}]; "
        "print([m for m in ('torch', 'sklearn', 'scipy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
