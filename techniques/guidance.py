"""Guidance: a prediction pushed away from a weaker one, by the guiders of diffusers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from gate.errors import UnsuitableError
from gate.technique import Cost, Technique, descend

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone
    from gate.request import Conditioning, Request, Response
    from gate.sample import SampleSet
    from gate.technique import CallNext

Weakness = Literal["prompt", "scores", "queries", "block", "blocks"]


@dataclass(frozen=True)
class Guider:
    """Facts of one guider. cls: in diffusers.guiders, "" where the formula is here. weakness: what the second
    prediction lacks. scale: default; off: the scale without effect. scale_name, weak_name: what diffusers
    calls them.
    """

    title: str
    source: str
    cls: str
    scale: float = 7.5
    off: float = 1.0
    weakness: Weakness = "prompt"
    scale_name: str = "guidance_scale"
    weak_name: str = "pred_uncond"
    options: Mapping[str, Any] = field(default_factory=dict)


MIN_GRID = 4  # on fewer positions attention has nothing to mix, and weakening it changes nothing
# guiders that weaken the denoiser: no prompt guidance beside it; eps + scale (eps - eps_weak) as in papers
ALONE = {"guidance_scale": 0.0, "use_original_formulation": True}
GUIDERS: dict[str, Guider] = {
    "cfg": Guider(
        "classifier-free guidance", "Ho and Salimans 2022 (arXiv 2207.12598)", "ClassifierFreeGuidance"
    ),
    "zero-star": Guider(
        "CFG-Zero*",
        "Fan et al. 2025 (arXiv 2503.18886)",
        "ClassifierFreeZeroStarGuidance",
        options={"zero_init_steps": 0},
    ),
    "tcfg": Guider(
        "tangential guidance", "Kwon et al. 2025 (arXiv 2503.18137)", "TangentialClassifierFreeGuidance"
    ),
    "apg": Guider(
        "adaptive projected guidance",
        "Sadat et al. 2024 (arXiv 2410.02416)",
        "AdaptiveProjectedGuidance",
        options={"eta": 0.0},
    ),
    "apg-mix": Guider(
        "adaptive projected guidance, HunyuanImage settings",
        "Sadat et al. 2024 (arXiv 2410.02416)",
        "AdaptiveProjectedMixGuidance",
        scale=10.0,
        scale_name="adaptive_projected_guidance_scale",
    ),
    "mambo": Guider(
        "magnitude-aware guidance",
        "MAMBO-G 2025 (arXiv 2508.03442)",
        "MagnitudeAwareGuidance",
        scale=10.0,
    ),
    "fdg": Guider("frequency-decoupled guidance", "Sadat et al. 2025 (arXiv 2506.19713)", "", scale=10.0),
    "pag": Guider(
        "perturbed-attention guidance",
        "Ahn et al. 2024 (arXiv 2403.17377)",
        "PerturbedAttentionGuidance",
        scale=3.0,
        off=0.0,
        weakness="scores",
        scale_name="perturbed_guidance_scale",
        weak_name="pred_cond_skip",
        options={
            **ALONE,
            "perturbed_guidance_layers": [0],
            "perturbed_guidance_start": 0.0,
            "perturbed_guidance_stop": 1.0,
        },
    ),
    "seg": Guider(
        "smoothed energy guidance",
        "Hong 2024 (arXiv 2408.00760)",
        "SmoothedEnergyGuidance",
        scale=3.0,
        off=0.0,
        weakness="queries",
        scale_name="seg_guidance_scale",
        weak_name="pred_cond_seg",
        options={**ALONE, "seg_guidance_layers": [0]},
    ),
    "slg": Guider(
        "skip-layer guidance",
        "Stability AI 2024, Stable Diffusion 3.5; after Hyung et al. 2024 (arXiv 2411.18664)",
        "SkipLayerGuidance",
        scale=2.8,
        off=0.0,
        weakness="block",
        scale_name="skip_layer_guidance_scale",
        weak_name="pred_cond_skip",
        options={
            **ALONE,
            "skip_layer_guidance_layers": [0],
            "skip_layer_guidance_start": 0.0,
            "skip_layer_guidance_stop": 1.0,
        },
    ),
    "auto": Guider(
        "autoguidance",
        "Karras et al. 2024 (arXiv 2406.02507)",
        "AutoGuidance",
        scale=2.0,
        weakness="blocks",
        options={"auto_guidance_layers": [0], "dropout": 1.0},
    ),
}


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
            control=self.guider == "cfg",
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


def new_guider(facts: Guider, scale: float) -> Any:
    """diffusers' guider, without its notice on stderr that guiders are experimental."""
    from diffusers import guiders
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return getattr(guiders, facts.cls)(**{**facts.options, facts.scale_name: scale})
    finally:
        logging.set_verbosity(verbosity)


def frequency_decoupled(strong: Tensor, weak: Tensor, *, high: float, low: float) -> Tensor:
    """weak + low L(d) + high (d - L(d)), d = strong - weak (Sadat et al. 2025, Alg. 2, with two levels).

    L is one level of a Laplacian pyramid down and up again; the pyramid is linear, so it acts on d alone.
    All (b, c, h, w).
    """
    difference = strong - weak
    smooth = _down_and_up(difference)
    return weak + low * smooth + high * (difference - smooth)


def _down_and_up(x: Tensor) -> Tensor:
    """The coarse half of a Laplacian pyramid (Burt and Adelson 1983), at full size. x: (b, c, h, w)."""
    from torch.nn import functional as F

    half = F.interpolate(_binomial(x), scale_factor=0.5, mode="bilinear", align_corners=False)
    return _binomial(F.interpolate(half, size=x.shape[-2:], mode="bilinear", align_corners=False))


def _binomial(x: Tensor) -> Tensor:
    """Blur by (1, 4, 6, 4, 1)/16 in both directions, reflected at the border where it is wide enough."""
    import torch
    from torch.nn import functional as F

    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=x.dtype, device=x.device) / 16
    kernel = torch.outer(row, row).expand(x.shape[1], 1, 5, 5)
    mode = "reflect" if min(x.shape[-2:]) > 2 else "replicate"
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode=mode), kernel, groups=x.shape[1])


def weak_stacks(denoiser: Any, weakness: Weakness) -> list[str]:
    """Paths of the transformers to weaken: those of the deepest level with MIN_GRID or more positions a side
    (Stable Diffusion's mid block, as the papers have it); for "blocks", the middle one of the mid block and of every
    level above."""
    modules = dict(denoiser.named_modules())
    levels = ["mid_block", *(n for n in modules if n.startswith("up_blocks.") and n.count(".") == 1)]
    stacks = {
        level: [p for i in range(16) if (p := f"{level}.attentions.{i}.transformer_blocks") in modules]
        for level in levels
    }
    if weakness == "blocks":
        return [paths[len(paths) // 2] for paths in stacks.values() if paths]
    large = (paths for level, paths in stacks.items() if paths and _grid(denoiser, level) >= MIN_GRID)
    return next(large, [])


def _grid(denoiser: Any, level: str) -> int:
    """Positions a side of a level's map, at the size that the denoiser was trained for; 64 where it does not say."""
    config = denoiser.config
    size = config.sample_size if isinstance(config.sample_size, int) else 64
    above = 0 if level == "mid_block" else int(level.rpartition(".")[2])
    return size >> (len(config.block_out_channels) - 1 - above)


@contextlib.contextmanager
def weakened(denoiser: Any, weakness: Weakness) -> Iterator[None]:
    """The denoiser with its attention or its transformers impaired, by diffusers' hooks; restored exactly."""
    from diffusers.hooks import LayerSkipConfig, apply_layer_skip

    stacks = {path: denoiser.get_submodule(path) for path in weak_stacks(denoiser, weakness)}
    marks = ("forward", "_diffusers_hook")  # what diffusers' hooks write on a module, and do not take away
    held = [(m, {k: vars(m)[k] for k in marks if k in vars(m)}) for s in stacks.values() for m in s.modules()]
    handles = []
    try:
        for path, stack in stacks.items():
            if weakness == "queries":
                handles += [b.attn1.to_q.register_forward_hook(_mean_query) for b in stack]
                continue
            scores = weakness == "scores"
            apply_layer_skip(
                denoiser,
                LayerSkipConfig(
                    indices=list(range(len(stack))),
                    fqn=path,
                    skip_attention=not scores,
                    skip_ff=not scores,
                    skip_attention_scores=scores,
                ),
            )
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, values in held:
            registry = vars(module).get("_diffusers_hook")
            if registry is not None:
                registry.remove_hook("layer_skip_hook", recurse=False)
            for mark in marks:
                vars(module).pop(mark, None)
            vars(module).update(values)


def _mean_query(module: Any, inputs: Any, queries: Tensor) -> Tensor:
    """(b, n, d) -> the same mean query at all n positions: SEG's blur at infinite width."""
    return queries.mean(dim=1, keepdim=True).expand_as(queries).contiguous()
