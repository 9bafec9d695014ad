"""Guidance: a prediction pushed away from a weaker one, by the guiders of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from gate.adapters.guiders import GUIDERS, frequency_decoupled, new_guider
from gate.adapters.weakening import weak_stacks, weakened
from gate.errors import UnsuitableError
from gate.technique import Cost, Technique, descend

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone
    from gate.request import Conditioning, Request, Response
    from gate.sample import SampleSet
    from gate.technique import CallNext


@dataclass(kw_only=True)
class Guidance(Technique):
    """eps_w = eps_weak + w (eps - eps_weak), and what the guiders make of it (Ho and Salimans 2022, Eq. 6).

    A guider changes a prediction, never the activations of the same call. To reach features it acts at a
    larger timestep: x_{t+lead} from the same x0 and noise, the guided prediction there, a deterministic DDIM
    step down to t, and the features of a plain call at that latent. guider: see `GUIDERS`. scale: None is the
    guider's own default. lead: how far above t the guided step starts (clamped to the schedule). steps: DDIM
    steps over that lead; 0 is vanilla. prompt: "caption" guides towards the sample's caption where the
    conditioning is still the neutral one, "given" takes the conditioning as it is; None is "caption" for
    guiders away from the neutral prompt, "given" for guiders away from a weakened denoiser. The last call
    always has the conditioning as it is.

    Weakened, in one extra call each, at the deepest level of 4x4 positions or more (the mid block, on tiny the
    level above): pag, the self-attention maps become the identity; seg, the queries their mean (infinite blur);
    slg, the transformers are skipped; auto, so is the middle transformer of every level, under the same
    prompt (a smaller model; the paper's is a less trained one). Combination is by diffusers' classes, told
    the progress 1 - t/T. Their own way to weaken does not reach a UNet: without prompt guidance beside it,
    pag and slg never install their hooks, seg never does at all and takes finite blur for infinite, and auto
    drops activations at random. So the hooks are set here. fdg is the paper's formula over two frequency
    bands (the lower at scale / 2), since diffusers' class needs kornia. apg has the paper's eta = 0 (at
    diffusers' 1 it is cfg) and one step has no momentum; zero-star's zeroed first steps are left out, t is
    never the first. Left out: LTX2Guidance, made of arguments that only the LTX-2 video transformer takes.
    """

    name = "guidance"
    summary = "Reach t by a guided step from a larger timestep."
    source = "Ho and Salimans 2022 (arXiv 2207.12598)"
    needs = frozenset({"captions"})
    neutral: ClassVar = {"steps": 0}
    listed = False
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {f"guidance-{g}": {"guider": g} for g in GUIDERS}

    guider: str = "cfg"
    scale: float | None = None
    lead: int = 50
    steps: int = 1
    prompt: Literal["caption", "given"] | None = None

    def __post_init__(self) -> None:
        if self.guider not in GUIDERS:
            raise ValueError(f"guider must be one of {', '.join(GUIDERS)}; got {self.guider!r}.")
        if self.lead < 1 or self.steps < 0:
            raise ValueError(
                f"lead must be at least 1 and steps 0 or more; got {self.lead} and {self.steps}."
            )
        if self.prompt not in ("caption", "given", None):
            raise ValueError(f"prompt must be 'caption' or 'given', got {self.prompt!r}.")
        facts = GUIDERS[self.guider]
        self.scale = float(facts.scale if self.scale is None else self.scale)
        self.prompt = self.prompt or ("caption" if facts.weakness == "prompt" else "given")
        vars(self).update(
            summary=f"Reach t by one step of {facts.title} from a larger timestep.",
            source=facts.source,
            negative_control=self.guider == "cfg",
            needs=frozenset({"captions"} if self.prompt == "caption" else ()),
            families=frozenset({"text"} if facts.weakness == "prompt" else {"unet"}),
        )

    @property
    def _acts(self) -> bool:
        return self.scale != GUIDERS[self.guider].off

    @property
    def cost(self) -> Cost:
        return Cost(per_pass=self.steps * (1 + self._acts) + 1.0)

    def check(self, backbone: Backbone, samples: SampleSet) -> None:
        import diffusers.guiders

        super().check(backbone, samples)
        facts = GUIDERS[self.guider]
        if facts.cls and not hasattr(diffusers.guiders, facts.cls):
            raise UnsuitableError(
                f"{self.name} needs {facts.cls}, which diffusers {diffusers.__version__} does not have.",
                "pip install -U diffusers",
            )
        if facts.weakness != "prompt" and not weak_stacks(backbone.denoiser, facts.weakness):
            raise UnsuitableError(
                f"{self.name} weakens a transformer of 4x4 positions or more; {backbone.name} has none."
            )

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        if self.steps == 0 or request.origin == "clean":
            return call_next(request)
        if request.origin == "sampled":
            return self._guided(request, call_next)
        return call_next(
            descend(request, self.lead, self.steps, lambda r: self._guided(r, call_next).prediction)
        )

    def _guided(self, request: Request, call_next: CallNext) -> Response:
        """The guided prediction at the request's own latent; features are those of the stronger call."""
        facts = GUIDERS[self.guider]
        strong_request = request.with_(conditioning=self._towards(request))
        strong = call_next(strong_request)
        if not self._acts:
            return strong
        weak_request = strong_request.with_(features=False)
        if facts.weakness == "prompt":
            weak_request = weak_request.with_(
                conditioning=request.conditioning.with_text(request.batch.neutral)
            )
            weak = call_next(weak_request)
        else:
            with weakened(request.batch.backbone.denoiser, facts.weakness):
                weak = call_next(weak_request)
        prediction = self._combine(strong.prediction, weak.prediction, request)
        x0 = request.batch.backbone.schedule.x0_from(prediction, request.x_t, request.t)
        return strong.with_(prediction=prediction, x0=x0)

    def _towards(self, request: Request) -> Conditioning:
        batch, given = request.batch, request.conditioning
        if self.prompt == "given" or not _same_text(given, batch.neutral):
            return given
        return given.with_text(batch.backbone.encode_prompts([s.caption or "" for s in batch.samples]))

    def _combine(self, strong: Tensor, weak: Tensor, request: Request) -> Tensor:
        facts = GUIDERS[self.guider]
        assert self.scale is not None
        if not facts.cls:
            return frequency_decoupled(strong, weak, high=self.scale, low=self.scale / 2)
        guider = new_guider(facts, self.scale)
        last = len(request.batch.backbone.schedule)
        t = int(request.t[0])
        guider.set_state(step=last - t, num_inference_steps=last + 1, timestep=request.t)
        # as (b, c, h w): diffusers' magnitude-aware guider cannot take its norm over three dimensions
        sides = {"pred_cond": strong.flatten(2), facts.weak_name: weak.flatten(2)}
        prediction: Tensor = guider.forward(**sides)["pred"].reshape(strong.shape)
        return prediction


def _same_text(a: Conditioning, b: Conditioning) -> bool:
    import torch

    return a.prompt_embeds.shape == b.prompt_embeds.shape and torch.equal(a.prompt_embeds, b.prompt_embeds)
