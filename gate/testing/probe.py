"""Does a probe keep its contract? Every invariant of it, on features that hold the truth and on noise."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np

from gate.errors import GateError
from gate.probe import Array, Folds, Probe, make_folds
from gate.sample import Sample, SampleSet
from gate.testing.report import Broken, Check, CheckReport, examined

N, CLASSES, CHANNELS, SIDE = 24, 3, 8, 16
STRENGTH = 4.0  # of the planted truth, in standard deviations of the noise
AGREE = 0.95  # of decisions that rounding may not turn


def check_probe(probe: Probe | type[Probe] | str) -> CheckReport:
    """Put a probe through every invariant of the contract.

    probe: an instance, a class, or a name as on the command line. What it raises becomes a failed finding.
    """
    from gate.registry import select_plugins

    def checks(made: Probe) -> list[tuple[str, Check]]:
        exam = _Examination(made)
        return [
            ("states its facts", exam.facts),
            ("one row a sample, finite", exam.rows),
            ("features that hold the truth beat noise", exam.learns),
            ("a sample is judged where it did not train", exam.held_out),
            ("deterministic, and writes to nothing that it is given", exam.deterministic),
            ("the order of samples changes nothing", exam.order),
            ("errors of resamples", exam.resamples),
            ("NaN is refused, not learned from", exam.nan),
        ]

    name = probe if isinstance(probe, str) else probe.name
    return examined(name, probe, lambda given: select_plugins("probe", (given,))[0], checks)


class _Examination:
    """A probe, labelled and masked samples, and two feature maps: the truth planted in noise, and noise alone."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        rng = np.random.default_rng(0)
        names = tuple(f"class {i}" for i in range(CLASSES))
        masks = rng.integers(0, CLASSES, (N, SIDE // 4, SIDE // 4)).repeat(4, 1).repeat(4, 2).astype(np.int16)
        images = rng.integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8)
        made = (
            Sample(image, label=i % CLASSES, mask=mask)
            for i, (image, mask) in enumerate(zip(images, masks, strict=True))
        )
        self.samples = SampleSet(tuple(made), name="planted", classes=names, mask_classes=names)
        self.folds = make_folds(self.samples)
        self.noise = rng.standard_normal((N, CHANNELS, SIDE, SIDE)).astype(np.float32)
        told = (
            masks if probe.needs == "masks" else np.arange(N)[:, None, None] % CLASSES * np.ones_like(masks)
        )
        planted = (told[:, None] == np.arange(CLASSES)[:, None, None]).astype(np.float32)
        self.truth = self.noise.copy()
        self.truth[:, :CLASSES] += STRENGTH * planted
        for features in (self.noise, self.truth):
            features.setflags(write=False)

    def evaluate(
        self,
        features: Array,
        samples: SampleSet | None = None,
        folds: Folds | None = None,
        reference: Array | None = None,
    ) -> Array:
        """What the probe gives; one against the reference compares with the planted truth, in the order of samples."""
        samples, folds = samples or self.samples, folds or self.folds
        if self.probe.against == "reference":
            given = self.truth if reference is None else reference
            return np.asarray(self.probe.compare(features, given, samples, folds))
        return np.asarray(self.probe.evaluate(features, samples, folds))

    @cached_property
    def found(self) -> Array:
        """What the probe gives for the planted truth."""
        return self.evaluate(self.truth)

    def error(self, values: Array, drawn: Array | None = None) -> Array:
        columns = self.probe.columns(values[:, None])
        return self.probe.errors(columns, np.ones(len(columns)) if drawn is None else drawn)[..., 0]

    def facts(self) -> str:
        probe = self.probe
        if not probe.name or "\n" in probe.summary:
            raise Broken("a probe needs a name and a summary of one line")
        return f"{probe.summary} (needs {probe.needs or 'no truth'}, {probe.figure or 'a figure of its own'})"

    def rows(self) -> str:
        found, counted = self.found, self.probe.figure
        if len(found) != N or not np.isfinite(found).all():
            raise Broken(f"gives {found.shape} for {N} samples, or what is not finite")
        if counted:
            if found.shape != (N, CLASSES, CLASSES) or not np.issubdtype(found.dtype, np.integer):
                raise Broken(f"gives {found.dtype} {found.shape}, not integer counts {(N, CLASSES, CLASSES)}")
            tested = 1 if self.probe.needs == "labels" else SIDE * SIDE
            if (found < 0).any() or (found.sum(axis=(1, 2)) != tested).any():
                raise Broken(f"counts of a sample do not add up to {tested}, what was tested in it")
        self.probe.stored(found)
        return f"{found.shape} of {found.dtype}"

    def learns(self) -> str:
        truth, noise = float(self.error(self.found)), float(self.error(self.evaluate(self.noise)))
        if not truth < noise:
            raise Broken(
                f"an error of {truth:.3g} where the truth is planted, {noise:.3g} on noise: it does not learn"
            )
        return f"an error of {truth:.3g} where the truth is planted, {noise:.3g} on noise"

    def held_out(self) -> str:
        """What is predicted for a sample must not change with its own truth."""
        if not self.probe.needs or not self.probe.figure:
            return "reads no truth, or has a figure of its own"
        first = self.samples[0]
        assert first.label is not None and first.mask is not None
        other = dataclasses.replace(first, label=(first.label + 1) % CLASSES, mask=(first.mask + 1) % CLASSES)
        changed = dataclasses.replace(self.samples, samples=(other, *self.samples.samples[1:]))
        before, after = (v[0].sum(axis=0) for v in (self.found, self.evaluate(self.truth, changed)))
        if not np.array_equal(before, after):
            raise Broken(
                "another label or mask of a sample changes what is predicted for it: it trained on itself"
            )
        return "another truth of a sample leaves its prediction as it is"

    def deterministic(self) -> str:
        if not np.array_equal(self.found, self.evaluate(self.truth)):
            raise Broken("two evaluations of the same features differ")
        return "the same features, which cannot be written to, give the same rows"

    def order(self) -> str:
        turned = dataclasses.replace(self.samples, samples=self.samples.samples[::-1])
        maps = np.ascontiguousarray(self.truth[::-1])
        found = self.evaluate(maps, turned, Folds(self.folds.assignment[::-1]), maps)[::-1]
        same = np.isclose(found, self.found, rtol=1e-3).mean()
        if not same >= AGREE:
            raise Broken(f"only {same:.0%} of its numbers stay when the samples come in the opposite order")
        return f"{same:.0%} of its numbers stay in the opposite order"

    def resamples(self) -> str:
        drawn = np.stack([np.ones(N), np.arange(N, dtype=float)])
        errors = self.error(self.found, drawn)
        if errors.shape != (2,) or not np.isfinite(errors).all() or (errors < -1e-9).any():
            raise Broken(f"errors of two resamples are {errors.tolist()}: two finite numbers, >= 0")
        return f"{'sums' if self.probe.is_additive else 'sets'}: {', '.join(f'{e:.3g}' for e in errors)}"

    def nan(self) -> str:
        broken = self.truth.copy()
        broken[0, 0, 0, 0] = np.nan
        try:
            found = self.evaluate(broken)
        except (GateError, ValueError) as error:
            return str(error)
        if np.isfinite(found).all():
            raise Broken("features with NaN give finite numbers; refuse them, as `require_truth` does")
        return "NaN gives NaN"
