"""check_technique finds each way in which a technique can break its contract, and only that one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch

from gate.backbone import Backbone
from gate.errors import PluginError
from gate.request import Batch, Conditioning, Request, Response
from gate.sample import SampleSet
from gate.technique import Cost, Technique
from gate.testing import check_technique

if TYPE_CHECKING:
    from gate.technique import CallNext


@dataclass(kw_only=True)
class Scaled(Technique):
    """x_t times a factor that `fit` learns nothing about: a sound technique to break."""

    name = "scaled"
    summary = "Scale the latent."
    neutral: ClassVar = {"factor": 1.0}

    factor: float = 1.1

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        return call_next(request.with_(x_t=request.x_t * self.factor))


class LeavesAHook(Scaled):
    @contextlib.contextmanager
    def attach(self, backbone: Backbone) -> Iterator[None]:
        backbone.denoiser.get_submodule("mid_block").register_forward_hook(lambda m, i, o: None)
        yield


class ChangesAWeight(Scaled):
    @contextlib.contextmanager
    def attach(self, backbone: Backbone) -> Iterator[None]:
        weight = next(backbone.denoiser.parameters())
        weight.data.add_(1e-4)
        yield
        weight.data.sub_(1e-4)  # nearly, and not at all after an error


class ChangesAProcessor(Scaled):
    @contextlib.contextmanager
    def attach(self, backbone: Backbone) -> Iterator[None]:
        from diffusers.models.attention_processor import AttnProcessor

        attention = backbone.denoiser.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1")
        attention.processor = AttnProcessor()  # type: ignore[assignment]
        yield


class HidesACall(Scaled):
    def denoise(self, request: Request, call_next: CallNext) -> Response:
        request.batch.backbone.predict(request)
        return super().denoise(request, call_next)


class CostsTooLittle(Scaled):
    @property
    def cost(self) -> Cost:
        return Cost(per_image=1, per_pass=1)


class RollsDice(Scaled):
    def denoise(self, request: Request, call_next: CallNext) -> Response:
        noise = 0 if self.factor == 1 else torch.randn_like(request.x_t)
        return call_next(request.with_(x_t=request.x_t + noise))


class MixesTheBatch(Scaled):
    def denoise(self, request: Request, call_next: CallNext) -> Response:
        mean = 0 if self.factor == 1 else request.x_t.mean(0, keepdim=True)
        return call_next(request.with_(x_t=request.x_t + mean))


class LooksAtTheOrder(Scaled):
    def condition(self, conditioning: Conditioning, batch: Batch) -> Conditioning:
        if self.factor == 1:
            return conditioning
        first = batch.everyone[0].caption or ""
        return conditioning.with_text(batch.backbone.encode_prompts([first] * len(batch)))


class IsNeverNeutral(Scaled):
    def denoise(self, request: Request, call_next: CallNext) -> Response:
        return call_next(request.with_(x_t=request.x_t * self.factor * (1 + 1e-6)))


class BreaksAtTheEnd(Scaled):
    def denoise(self, request: Request, call_next: CallNext) -> Response:
        response = super().denoise(request, call_next)
        if int(request.t[0]) < 999:
            return response
        return response.with_(prediction=response.prediction / 0)


class HalvesTheFeatures(Scaled):
    """Another shape than the backbone's, for what is measured: nothing can be compared with it."""

    neutral = None

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        response = super().denoise(request, call_next)
        halved = {name: torch.nn.functional.avg_pool2d(f, 2) for name, f in response.features.items()}
        return response.with_(features=halved)


class LosesTheImage(Scaled):
    neutral = None

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        response = super().denoise(request, call_next)
        return response.with_(features={k: torch.ones_like(f) for k, f in response.features.items()})


class KnowsTheImage(Scaled):
    """It starts from the clean latent and does not say so in `leak`."""

    neutral = None

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        return call_next(request.with_(x_t=request.batch.x0))


class ForgetsItsState(Scaled):
    shift = 0.0

    def fit(self, backbone: Backbone, samples: SampleSet) -> None:
        self.shift = 0.0 if self.factor == 1 else 0.5

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        return call_next(request.with_(x_t=request.x_t + self.shift))


class ServesAnything(Scaled):
    def check(self, backbone: Backbone, samples: SampleSet) -> None:
        pass


class TakesOnlyNoise(Scaled):
    def denoise(self, request: Request, call_next: CallNext) -> Response:
        if request.origin != "noised":
            raise RuntimeError("no noise in it")
        return super().denoise(request, call_next)


class SaysSeedless(Scaled):
    seedless = True


class SaysNothing(Scaled):
    summary = ""


class CannotBeMade(Scaled):
    def __init__(self) -> None:
        raise ValueError("not today")


BROKEN = {
    LeavesAHook: "detaching restores the backbone",
    ChangesAWeight: "detaching restores the backbone",
    ChangesAProcessor: "detaching restores the backbone",
    HidesACall: "declared cost is the counted cost",
    CostsTooLittle: "declared cost is the counted cost",
    RollsDice: "deterministic in the seed",
    MixesTheBatch: "independent of batch size and order",
    LooksAtTheOrder: "independent of batch size and order",
    IsNeverNeutral: "neutral settings are vanilla, bit for bit",
    BreaksAtTheEnd: "is finite",
    LosesTheImage: "features still carry the image",
    KnowsTheImage: "carries no image that it was not given",
    HalvesTheFeatures: "features have the backbone's shapes",
    ForgetsItsState: "state survives a save and load",
    ServesAnything: "refuses a backbone it does not serve",
    TakesOnlyNoise: "takes clean and sampled requests",
    SaysSeedless: "the seed matters where it should",
    SaysNothing: "states its facts",
    CannotBeMade: "can be made",
}
ALSO = {  # dice change whatever is run twice; a changed weight or processor changes what comes after
    ChangesAProcessor: {"neutral settings are vanilla, bit for bit"},
    RollsDice: {
        "independent of batch size and order", "state survives a save and load", "features still carry the image",
    },
    ChangesAWeight: {
        "neutral settings are vanilla, bit for bit", "deterministic in the seed",
        "independent of batch size and order", "state survives a save and load",
    },
}  # fmt: skip


@pytest.fixture()
def backbone() -> Backbone:
    """One of its own per test, since some of them break it."""
    from gate.backbones import load_backbone

    return load_backbone("tiny", device="cpu")


QUICKLY = (LosesTheImage, KnowsTheImage, HidesACall, RollsDice, ChangesAWeight, SaysNothing, CannotBeMade)


@pytest.mark.parametrize(
    "cls",
    [cls if cls in QUICKLY else pytest.param(cls, marks=pytest.mark.slow) for cls in BROKEN],
    ids=lambda cls: cls.__name__,
)
def test_each_breach_is_found(cls: type[Technique], backbone: Backbone, scenes: SampleSet) -> None:
    report = check_technique(cls, backbone, scenes[:3])
    failed = {f.invariant for f in report.failures}
    assert BROKEN[cls] in failed and failed <= {BROKEN[cls]} | ALSO.get(cls, set()), str(report)
    with pytest.raises(PluginError, match="breaks its contract"):
        report.raise_for_failures()


def test_a_sound_technique_passes_as_class_and_instance(tiny: Backbone, scenes: SampleSet) -> None:
    for subject in (Scaled, Scaled(factor=0.9)):
        report = check_technique(subject, tiny, scenes[:3])
        assert report.ok, str(report)
        report.raise_for_failures()
    assert {f.invariant for f in report.findings} == set(BROKEN.values()) - {"can be made"} | {
        "serves these samples"
    }


def test_a_name_and_a_composition(tiny: Backbone, scenes: SampleSet) -> None:
    report = check_technique("prompt+shared-timestep", tiny, scenes[:2])
    assert report.ok, str(report)
    assert "ok    neutral settings" in str(report)


def test_an_unknown_name_is_a_finding(tiny: Backbone, scenes: SampleSet) -> None:
    report = check_technique("promt", tiny, scenes[:2])
    assert not report.ok and "Did you mean 'prompt'" in report.failures[0].detail
