"""Each sample's prompt is the candidate under which the denoiser errs least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from gate.condition_search import NOISE, checked_loss, checked_stages, search_calls
from gate.errors import UnsuitableError
from gate.technique import Cost, Technique

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone
    from gate.request import Batch, Conditioning
    from gate.sample import SampleSet

SCENE_CLASSES = 14  # of tiny's scenes: what the search costs where nobody has said among what


@dataclass(kw_only=True)
class PromptSearch(Technique):
    """argmin_c E_{t, eps} ||eps - eps_theta(x_t, t, c)||^2, Diffusion Classifier (Li et al. 2023, Eq. 5 and
    Alg. 1), used (ours) to choose a prompt, not a class.

    candidates: the prompts; () makes them of the run's class names and `template`. stages: (n, keep) pairs; a
    stage brings every surviving candidate to n noised copies and keeps the best `keep`. Each copy has its own
    timestep, evenly spaced, later stages filling in between (each n divides the next), and its own noise, the
    same for every candidate. The last survivor wins; ties go to the first candidate. loss: of eps, or of v for
    flow models. seed: of the noise.
    """

    name = "prompt-search"
    summary = "Denoise under the candidate prompt with the least noise error, per sample."
    source = "ours; after Li et al. 2023, Diffusion Classifier (arXiv 2303.16203)"
    families = frozenset({"text"})
    needs = frozenset({"class-names"})
    listed = False
    unlisted = "it takes 37 denoiser calls where vanilla takes one, a third of a whole screen's; name it to screen it"
    neutral: ClassVar = {"candidates": ("",)}

    candidates: tuple[str, ...] = ()
    template: str = "a photo of a {name}"
    stages: tuple[tuple[int, int], ...] = ((2, 4), (4, 1))
    loss: Literal["l2", "l1", "huber"] = "l2"
    seed: int = 0
    _fitted: tuple[str, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        self.candidates = tuple(self.candidates)
        self.stages = checked_stages(self.stages)
        if "{name}" not in self.template:
            raise ValueError("template must hold {name}.")
        checked_loss(self.loss)
        if self.candidates:
            vars(self)["needs"] = frozenset()

    @property
    def cost(self) -> Cost:
        """per_image counts the candidates that `fit` found; before it, those of the settings, or as many as tiny's
        scenes have classes."""
        candidates = len(self._fitted or self.candidates) or SCENE_CLASSES
        return Cost(per_image=float(search_calls(candidates, self.stages)))

    def fit(self, backbone: Backbone, samples: SampleSet) -> None:
        self._fitted = self._prompts(tuple(samples.classes))

    def state(self) -> dict[str, Tensor]:
        import torch

        return {"candidates": torch.tensor(list("\n".join(self._fitted).encode()), dtype=torch.uint8)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._fitted = tuple(bytes(state["candidates"].tolist()).decode().split("\n"))

    def _prompts(self, class_names: tuple[str, ...]) -> tuple[str, ...]:
        """The candidates, one line each."""
        texts = self.candidates or tuple(self.template.replace("{name}", name) for name in class_names)
        return tuple(" ".join(text.split()) for text in texts)

    def condition(self, conditioning: Conditioning, batch: Batch) -> Conditioning:
        prompts = self._fitted or self._prompts(batch.class_names)
        if not prompts:
            raise UnsuitableError(
                f"{self.name} has no candidates.", "Set candidates, or screen data with classes."
            )
        best = self._search(prompts, conditioning, batch)
        chosen = batch.backbone.encode_prompts([prompts[i] for i in best])
        return conditioning.with_text(chosen)

    def _search(self, prompts: tuple[str, ...], conditioning: Conditioning, batch: Batch) -> list[int]:
        """Index of the best candidate, per sample."""
        from gate.condition_search import search

        def error(candidates: Tensor, copy: int) -> Tensor:
            texts = batch.backbone.encode_prompts([prompts[i] for i in candidates.tolist()])
            return self._error(copy, conditioning.with_text(texts), batch)

        return search(len(batch), len(prompts), self.stages, error)

    def _error(self, copy: int, conditioning: Conditioning, batch: Batch) -> Tensor:
        """(b,) float64, the mean over the latent of the loss of eps (flow: v) at one copy's timestep and noise."""
        import torch

        from gate.condition_search import condition_error, copy_timestep

        backbone = batch.backbone
        t = copy_timestep(copy, self.stages[-1][0], len(backbone.schedule))
        request = batch.request(t, self.seed + NOISE + copy, conditioning).with_(features=False)
        with torch.no_grad():
            prediction = backbone.denoise(request).prediction
        return condition_error(backbone.schedule, prediction, request, self.loss)
