"""Which class an image shows, by the prompt under which the denoiser errs least: nothing is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gate.condition_search import NOISE, Loss, checked_loss, checked_stages
from gate.probe import Folds, Probe, label_counts, require_truth
from gate.sample import SampleSet

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone
    from gate.metric import Pass

Array = npt.NDArray[Any]
SMALLEST = 8  # rows that go through at once, where a batch is smaller


class ZeroShot(Probe):
    """Diffusion Classifier (Li et al. 2023, Eq. 5 and Alg. 1) through the technique: argmin_c E_{t, eps} of the loss.

    A prompt per class stands in for the technique's own; all else of its conditioning and its calls stay. The error is
    that of the prediction which the reconstruction implies at the latent that all techniques share. template: of the
    prompts. copies: noised copies of an image, evenly spaced; a class is dropped once it cannot be expected to catch up
    (`gate.condition_search.race`, ours), the sooner the smaller `strictness`, inf for never. stages: the paper's fixed
    (copies, keep) pairs instead, as for the technique `prompt-search`. loss: l2, l1 or huber, of eps, or of v
    for flow models. seed: of the copies' noise. Timesteps and noises are its own, so one reading stands for all passes.
    """

    name = "zero-shot"
    summary = "Class of the image from the class prompt with the least noise error, without training"
    source = "Li et al. 2023, Diffusion Classifier (arXiv 2303.16203)"
    needs = "labels"
    figure = "balanced-accuracy"
    reads = "passes"
    once = True
    standard = False

    def __init__(
        self,
        *,
        template: str = "a photo of a {name}",
        copies: int = 8,
        strictness: float = 1.5,
        stages: Sequence[Sequence[int]] = (),
        loss: Loss = "l2",
        seed: int = 0,
    ) -> None:
        checked_loss(loss)
        if copies < 1 or strictness <= 0:
            raise ValueError("copies are 1 or more and strictness is above 0.")
        self.template, self.copies, self.strictness = template, copies, strictness
        self.stages, self.loss, self.seed = checked_stages(stages) if stages else (), loss, seed

    def refuses(self, backbone: Backbone) -> str:
        return "" if "text" in backbone.traits else f"{backbone.name} takes no prompts."

    def read(self, seen: Pass) -> Tensor:
        """(b, classes, 1, 1): 1 at the class that was chosen, 0 elsewhere."""
        import torch
        from torch.nn.functional import one_hot

        from gate.condition_search import race, search

        batch = seen.request.batch
        texts = [self.template.replace("{name}", name) for name in batch.class_names]
        rows = list(range(len(batch)))
        if self.stages:
            found = search(
                len(batch),
                len(texts),
                self.stages,
                lambda c, k: self._error(seen, texts, rows, c.tolist(), k),
            )
        else:
            found = race(
                len(batch),
                len(texts),
                self.copies,
                self.strictness,
                lambda r, c, k: self._error(seen, texts, r, c, k),
            )
        return one_hot(torch.tensor(found), len(texts)).float()[..., None, None]

    def _error(self, seen: Pass, texts: list[str], rows: list[int], classes: list[int], copy: int) -> Tensor:
        """(m,) float64 of one copy: of these rows, each under the prompt of its class, a batch's length at once."""
        import torch

        size = max(len(seen.request.batch), SMALLEST)
        parts = [slice(i, i + size) for i in range(0, len(rows), size)]
        return torch.cat([self._some(seen, texts, rows[part], classes[part], copy) for part in parts])

    def _some(self, seen: Pass, texts: list[str], rows: list[int], classes: list[int], copy: int) -> Tensor:
        from gate.condition_search import condition_error, copy_timestep, implied_prediction

        assert seen.again is not None
        whole = seen.request.batch
        backbone = whole.backbone
        batch = dataclasses.replace(
            whole,
            samples=tuple(whole.samples[row] for row in rows),
            x0=whole.x0[rows],
            neutral=whole.neutral.rows(rows),
        )
        words = backbone.encode_prompts([texts[i] for i in classes])
        t = copy_timestep(copy, self.stages[-1][0] if self.stages else self.copies, len(backbone.schedule))
        given = seen.request.conditioning.rows(rows).with_text(words)
        request = batch.request(t, self.seed + NOISE + copy, given).with_(features=False)
        prediction = implied_prediction(backbone.schedule, seen.again(request).x0, request)
        return condition_error(backbone.schedule, prediction, request, self.loss)

    def evaluate(self, features: Array, samples: SampleSet, folds: Folds) -> npt.NDArray[np.int64]:
        """features: (n, classes or more, h, w), the highest of which, averaged over positions, is the answer."""
        k = require_truth(samples, features, folds, "labels")
        predicted = np.asarray(features)[:, :k].mean(axis=(2, 3)).argmax(axis=1)
        return label_counts(np.array([s.label for s in samples]), predicted, k)
