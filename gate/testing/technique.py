"""Does a technique keep its contract? Every invariant of it, on a few samples."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, cast

from gate.carried import unseen
from gate.composition import Composition
from gate.errors import UnsuitableError
from gate.passes import single_pass
from gate.plugins import class_problem
from gate.technique import Technique
from gate.testing.passes import TIMESTEPS, Examination, expect_equal, fresh
from gate.testing.report import Broken, Check, CheckReport, examined

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.sample import SampleSet

SAMPLES = 4


def check_technique(
    technique: Technique | type[Technique] | str,
    backbone: Backbone | None = None,
    samples: SampleSet | None = None,
) -> CheckReport:
    """Put a technique through every invariant of the contract.

    technique: an instance, a class (with its defaults), or a name as on the command line. backbone: the
    embedded one where none is given. samples: a few captioned and labelled images of one size; held-out
    scenes by default. What the technique raises becomes a failed finding; only a backbone or samples that
    cannot be loaded raise.
    """
    from gate.backbones import load_backbone
    from gate.data import load_data
    from gate.registry import create_technique

    tested = backbone or load_backbone("tiny", device="cpu", dtype="float32")
    chosen = samples or load_data("scenes-held-out", n=SAMPLES, size=tested.image_size)

    def checks(made: Technique) -> list[tuple[str, Check]]:
        exam = _Invariants(made, tested, chosen)
        return [
            ("states its facts", exam.facts),
            ("serves these samples", exam.suitable),
            ("refuses a backbone it does not serve", exam.refusal),
            ("neutral settings are vanilla, bit for bit", exam.neutral),
            ("detaching restores the backbone", exam.restores),
            ("features have the backbone's shapes", exam.shapes),
            ("is finite", exam.finite),
            ("deterministic in the seed", exam.deterministic),
            ("the seed matters where it should", exam.seedless),
            ("independent of batch size and order", exam.independent),
            ("features still carry the image", exam.carries),
            ("carries no image that it was not given", exam.leaks),
            ("declared cost is the counted cost", exam.cost),
            ("state survives a save and load", exam.round_trip),
            ("takes clean and sampled requests", exam.other_origins),
        ]

    name = technique if isinstance(technique, str) else technique.name or _class_of(technique).__name__
    return examined(name, technique, create_technique, checks)


def _class_of(technique: Technique | type[Technique]) -> type[Technique]:
    return technique if isinstance(technique, type) else type(technique)


def _each(shapes: set[tuple[int, ...]]) -> str:
    """(32, 8, 8) of each sample, or several of them."""
    return " and ".join(str(shape) for shape in sorted(shapes))


def _has_neutral(technique: Technique) -> bool:
    parts = technique.parts if isinstance(technique, Composition) else (technique,)
    return all(part.neutral is not None for part in parts)


class _Invariants(Examination):
    """The invariants, each a sentence of what was seen."""

    def facts(self) -> str:
        technique = self.technique
        if not technique.name or not technique.summary or "\n" in technique.summary:
            raise Broken("a technique needs a name and a summary of one line")
        parts = technique.parts if isinstance(technique, Composition) else (technique,)
        if problem := next(filter(None, (class_problem(type(part)) for part in parts)), ""):
            raise Broken(problem)
        if not technique.families:
            raise Broken("families is empty: it would serve no backbone")
        return technique.summary

    def suitable(self) -> str:
        self.technique.check(self.backbone, self.samples)
        return f"{len(self.samples)} samples of {self.samples.name} on {self.backbone.name}"

    def refusal(self) -> str:
        stranger = cast("Backbone", _Stranger())
        try:
            self.technique.check(stranger, self.samples)
        except UnsuitableError as error:
            return error.reason
        raise Broken(f"check accepts a backbone of the family {_Stranger.family!r}; raise UnsuitableError")

    def neutral(self) -> str:
        if not _has_neutral(self.technique):
            return "declares no neutral settings"
        passes = [(t, 0) for t in TIMESTEPS]
        pairs = zip(
            self.extract(Technique(), passes), self.extract(self.fitted(neutral=True), passes), strict=True
        )
        for vanilla, neutral in pairs:
            expect_equal(self.values(vanilla), self.values(neutral), "differs from vanilla")
        return f"equal at t = {' and '.join(map(str, TIMESTEPS))}"

    def restores(self) -> str:
        import torch

        from gate.intact import Intact

        self.extract(Technique())  # what a first pass caches is not the technique's doing
        before = Intact(self.backbone, self.samples, self.latents)
        technique = fresh(self.technique)
        technique.fit(self.backbone, technique.visible(self.samples))
        self.extract(technique)
        with contextlib.suppress(_Interruption), torch.no_grad(), technique.attach(self.backbone):
            raise _Interruption  # an interrupted screen must leave the backbone whole as well
        changed = before.changes()
        if changed:
            raise Broken(f"changed for good: {', '.join(changed[:5])}{' ...' if len(changed) > 5 else ''}")
        return f"{len(before.weights)} parameters and buffers, hooks, functions and samples as before"

    def shapes(self) -> str:
        [vanilla] = self.extract(Technique())
        for (t, _), result in self.results.items():
            for name, row in vanilla.rows.items():
                expected = {tuple(value.shape) for value in row.values()}
                found = {tuple(value.shape) for value in result.rows[name].values()}
                if found != expected:
                    raise Broken(
                        f"{name} is {_each(found)} at t = {t}, and the backbone's is {_each(expected)}: nothing can be "
                        "compared with it"
                    )
        return "as vanilla's, a sample at a time"

    def finite(self) -> str:
        for (t, _), result in self.results.items():
            for name, value in self.values(result).items():
                if not bool(value.isfinite().all()):
                    raise Broken(f"{name} holds NaN or infinity at t = {t}")
        return f"at t = {', '.join(str(t) for t, _ in sorted(self.results))}"

    def deterministic(self) -> str:
        import torch

        first = self.usual
        state = torch.get_rng_state()
        try:
            torch.manual_seed(12345)  # the global random state must not matter, neither to fit nor to a pass
            technique = fresh(self.technique)
            technique.fit(self.backbone, technique.visible(self.samples))
            _, again = self.extract(
                technique, [(TIMESTEPS[1], 1), (TIMESTEPS[0], 0)]
            )  # nor a pass in between
        finally:
            torch.set_rng_state(state)
        what = "differs between two runs of one seed"
        if self.backbone.device.type != "cpu":
            return self.expect_close(first, self.values(again), what)
        expect_equal(first, self.values(again), what)
        return "two runs of one seed agree bit for bit"

    def seedless(self) -> str:
        if not self.technique.seedless:
            return "draws on the noise seed"
        [other] = self.extract(self.fitted(), [(TIMESTEPS[0], 1)])
        return self.expect_close(self.usual, self.values(other), "says seedless and differs with the seed")

    def independent(self) -> str:
        technique = self.fitted()
        [one] = self.extract(technique, size=1)
        self.expect_close(self.usual, self.values(one), "differs one sample at a time")
        [turned] = self.extract(technique, order=tuple(reversed(self.samples.samples)), size=3)
        return self.expect_close(self.usual, self.values(turned), "differs in another order")

    def cost(self) -> str:
        declared = self.fitted().cost
        for (t, _), counted in self.results.items():
            if abs(counted.per_image - declared.per_image) > 1e-9:
                raise Broken(f"per image {declared.per_image:g} declared, {counted.per_image:g} counted")
            if abs(counted.per_pass - declared.per_pass) > 1e-9:
                raise Broken(
                    f"per pass {declared.per_pass:g} declared, {counted.per_pass:g} counted at t = {t}"
                )
        return f"{declared.per_image:g} calls per image and {declared.per_pass:g} per pass"

    def carries(self) -> str:
        if self.technique.leak:
            return f"not asked of what starts elsewhere: {self.technique.leak}"
        lost, least = "", 1.0
        for t in TIMESTEPS:
            ours, theirs = self.carried(self.fitted(), t), self.usual_carried[t]
            lost = lost or ours.lacking(theirs)
            least = min(least, ours.image / theirs.image)
        if lost:
            raise Broken(lost)
        return f"{min(least, 1.0):.0%} of the image that vanilla's do, or more"

    def leaks(self) -> str:
        if self.technique.leak:
            return f"declared: {self.technique.leak}"
        if told := unseen(self.plan(self.fitted())).told():
            raise Broken(f"{told}; say so in `leak`")
        return f"{len(self.many[0])} images were in no latent, and nothing of them came back"

    def round_trip(self) -> str:
        from safetensors.torch import load, save

        technique = self.fitted()
        state = technique.state()
        restored = fresh(self.technique)
        restored.load_state(load(save({k: v.detach().cpu().contiguous() for k, v in state.items()})))
        [again] = self.extract(restored)
        self.expect_close(self.usual, self.values(again), "differs after a round trip")
        if restored.cost != technique.cost:
            raise Broken(f"the cost is {restored.cost} after a round trip, {technique.cost} before")
        return f"{len(state)} tensors" if state else "keeps no state"

    def other_origins(self) -> str:
        import torch

        technique = self.fitted()
        batch = self.batch(self.samples.samples, self.samples.samples)
        with torch.no_grad(), technique.attach(self.backbone):
            conditioning = technique.condition(batch.neutral, batch)
            noised = batch.request(TIMESTEPS[1], 0, conditioning)
            for request in (batch.clean_request(conditioning), noised.with_(origin="sampled")):
                response = single_pass(technique, request, self.layers)
                if response.prediction.shape != batch.x0.shape:
                    raise Broken(f"a {request.origin} request gives {tuple(response.prediction.shape)}")
                if not bool(response.prediction.isfinite().all()):
                    raise Broken(f"a {request.origin} request gives NaN or infinity")
                if set(response.features) != set(self.layers):
                    raise Broken(f"a {request.origin} request gives the features of {set(response.features)}")
        return "both give a finite prediction and all features"


class _Interruption(Exception):
    pass


class _Stranger:
    """A backbone of a family that no technique serves; it has nothing but its name."""

    family = "no-such-family"
    name = "a backbone of no known family"
