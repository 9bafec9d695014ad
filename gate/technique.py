"""The technique contract: fit, condition, attach, start, denoise; all optional, the defaults do nothing.

A technique is a dataclass: its fields are its settings, its class attributes are the facts that the command line,
the ranker and the docs read. This module imports no torch, so that listing techniques is instant.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from gate.errors import UnsuitableError

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone
    from gate.request import Batch, Conditioning, Request, Response
    from gate.sample import SampleSet

    CallNext = Callable[[Request], Response]

Need = Literal["weights", "captions", "labels", "masks", "class-names", "training"]


@dataclass(frozen=True)
class Cost:
    """Denoiser calls. per_image: once per image, whatever follows; per_pass: for each (timestep, seed);
    start: how many of per_pass `start` spends, before the denoiser is wrapped."""

    per_image: float = 0.0
    per_pass: float = 1.0
    start: float = 0.0

    @property
    def total(self) -> float:
        """Calls to extract one image's features once."""
        return self.per_image + self.per_pass


@dataclass(kw_only=True)
class Technique:
    """A generation technique. Subclass it as a dataclass; override what it does.

    Facts: `name` as on the command line; `summary`, one line; `source`, the paper; `needs`, of which "labels" and
    "masks" are shown to none that does not name them, and whoever is shown them cannot win; `families` of backbone it
    serves, or traits of them ("text": any that takes prompts; "unconditional"); `leak`, why its image or latent carries
    the input's own pixels ("" = it does not); `negative_control`, whether it is there to lose; `control_of`, the
    technique that such a control must lose to ("" = vanilla); `replaces_latent`, whether it starts from another latent
    (two such do not compose); `seedless`, whether the noise seed plays no part, so that one seed is measured for all of
    them; `neutral`, settings under which it equals vanilla bit for bit (None = it has none); `variants`, further names
    with their settings; `aliases`, old names and what each is called now; `compositions`, names with `+` that belong to
    `all`; `listed`, whether it is in `all` itself; `unlisted`, why a technique is not, for `gate describe`.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    needs: ClassVar[frozenset[Need]] = frozenset()
    families: ClassVar[frozenset[str]] = frozenset({"unet"})
    leak: ClassVar[str] = ""
    negative_control: ClassVar[bool] = False
    control_of: ClassVar[str] = ""
    replaces_latent: ClassVar[bool] = False
    seedless: ClassVar[bool] = False
    neutral: ClassVar[Mapping[str, Any] | None] = None
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    aliases: ClassVar[Mapping[str, str]] = {}
    compositions: ClassVar[tuple[str, ...]] = ()
    listed: ClassVar[bool] = True
    unlisted: ClassVar[str] = ""

    @property
    def attaches(self) -> bool:
        """Whether it may change the backbone for a while: it has an `attach` of its own."""
        return type(self).attach is not Technique.attach

    @property
    def truth(self) -> tuple[Literal["labels", "masks"], ...]:
        """What it is given of that which probes judge by."""
        known: tuple[Literal["labels", "masks"], ...] = ("labels", "masks")
        return tuple(what for what in known if what in self.needs)

    def visible(self, samples: SampleSet) -> SampleSet:
        """The samples as this technique may see them: images and captions, and truth only where it names it."""
        hidden: set[Literal["label", "mask", "keypoints"]] = {"label", "mask", "keypoints"}
        hidden -= {"label"} if "labels" in self.needs else set()
        hidden -= {"mask"} if "masks" in self.needs else set()
        return samples.without(*sorted(hidden))

    @property
    def cost(self) -> Cost:
        """Declared denoiser calls; `gate.testing.check_technique` counts them."""
        return Cost()

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting and its value."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}

    def check(self, backbone: Backbone, samples: SampleSet) -> None:
        """Raise `UnsuitableError` where this backbone or these samples cannot be served."""
        vanilla = type(self) is Technique  # the backbone as it is: served by every one
        if not vanilla and self.families.isdisjoint({backbone.family, *getattr(backbone, "traits", ())}):
            raise UnsuitableError(
                f"{self.name} serves {', '.join(sorted(self.families))} backbones, "
                f"{backbone.name} is {backbone.family}."
            )
        if "captions" in self.needs and not samples.has_captions:
            raise UnsuitableError(
                f"{self.name} needs a caption for every image.",
                "Add NAME.txt beside each image, or captions.csv.",
            )
        if "labels" in self.needs and not samples.has_labels:
            raise UnsuitableError(f"{self.name} needs labels.", "Sort the images into a folder per class.")
        if "masks" in self.needs and not samples.has_masks:
            raise UnsuitableError(f"{self.name} needs masks.", "Add NAME.mask.png beside each image.")
        if "class-names" in self.needs and len(samples.classes) < 2:
            raise UnsuitableError(
                f"{self.name} chooses among class names.",
                "Sort the images into a folder per class, or set candidates.",
            )

    def fit(self, backbone: Backbone, samples: SampleSet) -> None:
        """Learn something from a few images; the time it takes is recorded."""

    def state(self) -> dict[str, Tensor]:
        """What `fit` learned, as tensors."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""

    def attach(self, backbone: Backbone) -> AbstractContextManager[None]:
        """Change the backbone for a while (weights, hooks, attention processors) and restore it bit for bit."""
        return contextlib.nullcontext()

    def condition(self, conditioning: Conditioning, batch: Batch) -> Conditioning:
        """The conditioning of these samples; called once per batch, before all passes."""
        return conditioning

    def start(self, request: Request) -> Request:
        """Another latent to start from; called for noised requests only."""
        return request

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        """Wrap the denoiser: call it once, several times, elsewhere on the noise axis, with gradients."""
        return call_next(request)


def descend(request: Request, lead: int, steps: int, predict: Callable[[Request], Tensor]) -> Request:
    """The request at a latent that was reached by denoising: from x_{t + lead}, made of the same x0 and noise, down to
    t by `steps` deterministic DDIM steps of predict(request), (b, c, h, w). t + lead stays within the schedule."""
    schedule = request.batch.backbone.schedule
    top = (request.t + lead).clamp(max=len(schedule) - 1)
    here = request.at(top).with_(features=False)
    for k in range(1, steps + 1):
        after = top - (top - request.t) * k // steps
        here = here.moved(schedule.ddim_step(predict(here), here.x_t, here.t, after), after)
    return here.with_(t_condition=request.t_condition, features=request.features)
