"""Which class an image shows, by the prompt under which the denoiser errs least: nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gate.condition_search import NOISE, Loss, Stages, checked_loss, checked_stages
from gate.probe import Folds, Probe, label_counts, require_truth
from gate.sample import SampleSet

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone
    from gate.metric import Pass

Array = npt.NDArray[Any]
STAGES: Stages = ((2, 5), (4, 2), (8, 1))


class ZeroShot(Probe):
    """Diffusion Classifier (Li et al. 2023, Eq. 5 and Alg. 1) through the technique: argmin_c E_{t, eps} of the loss.

    A prompt per class stands in for the technique's own; all else of its conditioning and its calls stay. The error is
    that of the prediction which the reconstruction implies at the latent that all techniques share. template: of the
    prompts. stages: (copies, keep) pairs as for the technique `prompt-search`. loss: l2, l1 or huber, of eps, or of v
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
        stages: Sequence[Sequence[int]] = STAGES,
        loss: Loss = "l2",
        seed: int = 0,
    ) -> None:
        checked_loss(loss)
        self.template, self.stages, self.loss, self.seed = template, checked_stages(stages), loss, seed

    def refuses(self, backbone: Backbone) -> str:
        return "" if "text" in backbone.traits else f"{backbone.name} takes no prompts."

    def read(self, seen: Pass) -> Tensor:
        """(b, classes, 1, 1): 1 at the class that was chosen, 0 elsewhere."""
        import torch
        from torch.nn.functional import one_hot

        from gate.condition_search import search

        batch = seen.request.batch
        texts = [self.template.replace("{name}", name) for name in batch.class_names]
        found = search(len(batch), len(texts), self.stages, lambda c, k: self._error(seen, texts, c, k))
        return one_hot(torch.tensor(found), len(texts)).float()[..., None, None]

    def _error(self, seen: Pass, texts: list[str], classes: Tensor, copy: int) -> Tensor:
        """(b,) float64 of one copy, each row under the prompt of its own class."""
        from gate.condition_search import condition_error, copy_timestep, implied_prediction

        assert seen.again is not None
        batch = seen.request.batch
        backbone = batch.backbone
        words = backbone.encode_prompts([texts[i] for i in classes.tolist()])
        t = copy_timestep(copy, self.stages, len(backbone.schedule))
        request = batch.request(t, self.seed + NOISE + copy, seen.request.conditioning.with_text(words))
        request = request.with_(features=False)
        prediction = implied_prediction(backbone.schedule, seen.again(request).x0, request)
        return condition_error(backbone.schedule, prediction, request, self.loss)

    def evaluate(self, features: Array, samples: SampleSet, folds: Folds) -> npt.NDArray[np.int64]:
        """features: (n, classes or more, h, w), the highest of which, averaged over positions, is the answer."""
        k = require_truth(samples, features, folds, "labels")
        predicted = np.asarray(features)[:, :k].mean(axis=(2, 3)).argmax(axis=1)
        return label_counts(np.array([s.label for s in samples]), predicted, k)
