"""Our side: latents once, prompts once, forwards that stop after the last layer; through the public surface alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.job import Job, Outputs
from gate.backbone import Backbone, is_map, pixels
from gate.backbones.maps import per_head
from gate.extraction.engine import running
from gate.extraction.plan import Precision, usual_setting
from gate.passes import Plan, stream
from gate.registry import create_technique
from gate.technique import Technique


class Planned:
    """Rows "gate": the job as `gate` does it, one technique per prompt, in the layout that its planner asks for.

    compiled: what `gate extract --compile` may choose; UNets without maps alone.
    """

    def __init__(
        self, backbone: Backbone, job: Job, precision: Precision = "exact", *, compiled: bool = False
    ) -> None:
        self.backbone, self.job, self.compiled = backbone, job, compiled
        self.setting = usual_setting(backbone, precision).with_(
            batch=job.batch, processes=1, threads=torch.get_num_threads(), compiled=compiled
        )
        self.techniques = [_technique(prompt) for prompt in job.prompts]
        self.known = self._latents() if job.mode == "cached" else None

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        with running(self.backbone, self.setting):
            yield

    def __call__(self) -> Outputs:
        with self.backbone.prompts_anew():  # those of an earlier repeat are not there
            return self._passes(self.known if self.known is not None else self._latents())

    def _passes(self, x0: Tensor) -> Outputs:
        job, found = self.job, {}
        for k, technique in enumerate(self.techniques):
            plan = Plan(
                self.backbone,
                technique,
                job.samples,
                job.timesteps,
                job.seeds,
                job.layers,
                job.batch,
                x0,
                outputs=False,
            )
            parts: dict[tuple[int, int, int], list[dict[str, Tensor]]] = {}
            with contextlib.closing(stream(plan)) as passes:
                for passed in passes:
                    cell = (k, int(passed.request.t[0]), passed.request.seed)
                    parts.setdefault(cell, []).append(self._shaped(passed.response.features))
            for cell, made in parts.items():
                found[cell] = {layer: torch.cat([p[layer] for p in made]) for layer in job.layers}
        return found

    def _latents(self) -> Tensor:
        return torch.cat(
            [self.backbone.encode(pixels(self.job.samples[i : i + 1])) for i in range(len(self.job.samples))]
        )

    def _shaped(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        made = {}
        for layer in self.job.layers:
            value, path = features[layer].cpu(), self.backbone.layer_paths[layer]
            if is_map(path):
                attention: Any = self.backbone.denoiser.get_submodule(path.partition(":")[0])
                value = per_head(value, attention.heads)
            made[layer] = value
        return made


def _technique(prompt: str) -> Technique:
    return create_technique("generic-prompt", prompt=prompt) if prompt else Technique()
