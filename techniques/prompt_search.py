"""Each sample's prompt is the candidate under which the denoiser errs least."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from gate.errors import UnsuitableError
from gate.technique import Cost, Technique

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone
    from gate.request import Batch, Conditioning
    from gate.sample import SampleSet

SCENE_CLASSES = 14  # of tiny's scenes: what the search costs where nobody has said among what
NOISE = 1 << 48  # far from the noise seeds of a screen, which must not choose the prompts


@dataclass(kw_only=True)
class PromptSearch(Technique):
    """argmin_c E_{t, eps} ||eps - eps_theta(x_t, t, c)||^2, Diffusion Classifier (Li et al. 2023, Eq. 5 and
    Alg. 1), used (ours) to choose a prompt, not a class.

    candidates: the prompts; () makes them of the run's class names and `template`. stages: (n, keep) pairs; a
    stage brings every surviving candidate to n noised copies and keeps the best `keep`. Each copy has its own
    timestep, evenly spaced, later stages filling in between (each n divides the next), and its own noise, the
    same for every candidate. The last survivor wins; ties go to the first candidate. loss: of eps. seed: of
    the noise.
    """

    name = "prompt-search"
    summary = "Denoise under the candidate prompt with the least noise error, per sample."
    source = "ours; after Li et al. 2023, Diffusion Classifier (arXiv 2303.16203)"
    families = frozenset({"text"})
    needs = frozenset({"class-names"})
    neutral: ClassVar = {"candidates": ("",)}

    candidates: tuple[str, ...] = ()
    template: str = "a photo of a {name}"
    stages: tuple[tuple[int, int], ...] = ((2, 4), (4, 1))
    loss: Literal["l2", "l1", "huber"] = "l2"
    seed: int = 0
    _fitted: tuple[str, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        self.candidates = tuple(self.candidates)
        self.stages = tuple((int(n), int(keep)) for n, keep in self.stages)
        counts = [n for n, _ in self.stages]
        if not counts or min(min(stage) for stage in self.stages) < 1 or self.stages[-1][1] != 1:
            raise ValueError("stages are (copies, keep) pairs of at least 1, and the last keeps 1.")
        if any(b % a or b == a for a, b in itertools.pairwise(counts)):
            raise ValueError(f"each stage's copies must be a multiple of the one before; got {counts}.")
        if "{name}" not in self.template:
            raise ValueError("template must hold {name}.")
        if self.loss not in ("l2", "l1", "huber"):
            raise ValueError(f"loss must be l2, l1 or huber, got {self.loss!r}.")
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
        import torch

        alive = torch.arange(len(prompts)).expand(len(batch), -1)  # (b, k), ascending in each row
        total = torch.zeros(len(batch), len(prompts), dtype=torch.float64)
        done: list[int] = []
        for n, keep in self.stages:
            if alive.shape[1] == 1:
                break
            fresh = [i for i in copies(n, self.stages) if i not in done]
            for rank in range(alive.shape[1]):
                texts = batch.backbone.encode_prompts([prompts[i] for i in alive[:, rank].tolist()])
                for copy in fresh:
                    error = self._error(copy, conditioning.with_text(texts), batch)
                    total[torch.arange(len(batch)), alive[:, rank]] += error
            done += fresh
            order = total.gather(1, alive).argsort(dim=1, stable=True)[:, :keep]
            alive = alive.gather(1, order).sort(dim=1).values
        return alive[:, 0].tolist()

    def _error(self, copy: int, conditioning: Conditioning, batch: Batch) -> Tensor:
        """(b,) float64, the mean over the latent of the loss of eps at one copy's timestep and noise."""
        import torch
        from torch.nn import functional as F

        backbone = batch.backbone
        t = len(backbone.schedule) * (2 * copy + 1) // (2 * self.stages[-1][0])
        request = batch.request(t, self.seed + NOISE + copy, conditioning).with_(features=False)
        with torch.no_grad():
            prediction = backbone.denoise(request).prediction
        eps_hat = backbone.schedule.eps_from(prediction, request.x_t, request.t)
        measures: dict[str, Any] = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}
        loss: Tensor = measures[self.loss](eps_hat.double(), request.eps.double(), reduction="none")
        return loss.mean(dim=(1, 2, 3)).cpu()


def copies(n: int, stages: tuple[tuple[int, int], ...]) -> list[int]:
    """Which of the last stage's N copies a stage of n uses: every N/n-th, with those of earlier stages."""
    most, first = stages[-1][0], stages[0][0]
    step = most // n
    return list(range((most // first) // 2 % step, most, step))


def search_calls(candidates: int, stages: tuple[tuple[int, int], ...]) -> int:
    """Denoiser calls per image: each surviving candidate is brought from one stage's copies to the next's."""
    calls, alive, before = 0, candidates, 0
    for n, keep in stages:
        if alive <= 1:
            break
        calls += alive * (n - before)
        alive, before = min(alive, keep), n
    return calls
