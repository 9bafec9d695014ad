"""The images of a domain: disjoint parts to screen, to train on and to test on, and what is known about them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gate.backbone import Backbone, pixels
from gate.data import find_data, load_data
from gate.passes import Plan
from gate.runs.directory import write_json
from gate.sample import SampleSet
from gate.study.plan import Domain, StudySettings
from gate.tasks import Pair, Truth, truth_of
from gate.tiny.pairs import pairs_within

if TYPE_CHECKING:
    from gate.tiny.scenes import Scene


@dataclass(frozen=True, eq=False)
class Pool:
    """screening: what is screened; heads: what heads train on, then what they are tested on. x0: latents of `heads`.
    train, test: the truth about the two parts of `heads`, with pairs of their own rows."""

    screening: SampleSet
    heads: SampleSet
    x0: Tensor
    train: Truth
    test: Truth


def open_pool(settings: StudySettings, domain: Domain, backbone: Backbone, folder: Path) -> Pool:
    """Images, captions, latents and truth of a domain. folder: of the study; searched captions are kept there."""
    size, n = backbone.image_size, settings.images
    samples = load_data(domain.data, n=n, size=size, seed=domain.seed)
    scenes = find_data(domain.data).draw(n=n, size=size, seed=domain.seed)
    if domain.searched:
        samples = _searched(samples, settings, domain, backbone, folder)
    a, b = settings.screening, settings.screening + settings.train
    heads = samples[a:]
    batch = settings.batch_size
    x0 = torch.cat(
        [backbone.encode(pixels(heads[i : i + batch].samples)) for i in range(0, len(heads), batch)]
    )
    return Pool(
        samples[:a],
        heads,
        x0,
        _truth(samples[a:b], scenes[a:b], settings.pairs, domain.seed, size),
        _truth(samples[b:], scenes[b:], settings.pairs, domain.seed, size),
    )


def _truth(samples: SampleSet, scenes: Sequence[Scene], n: int, seed: int, size: int) -> Truth:
    """With pairs of scenes that show the same object."""
    found = pairs_within(scenes, n, seed=seed)
    pairs = tuple(
        Pair(
            p.first,
            p.second,
            p.points_a,
            p.points_b,
            float(size),
            float(max(p.box[2] - p.box[0], p.box[3] - p.box[1])),
            group=str(p.sprite),
        )
        for p in found
    )
    return dataclasses.replace(truth_of(samples), pairs=pairs)


def _searched(
    samples: SampleSet, settings: StudySettings, domain: Domain, backbone: Backbone, folder: Path
) -> SampleSet:
    """Under the captions that `prompt-search` writes: the search looks at no timestep of ours, so it is made once."""
    file = folder / f"captions-{domain.name}.json"
    captions: dict[str, str] = {}
    if file.is_file():
        captions = json.loads(file.read_text(encoding="utf-8"))
    missing = samples if any(s.id not in captions for s in samples) else samples[:0]
    if len(missing):
        captions = search_captions(samples, settings, backbone)
        write_json(file, captions)
    said = tuple(dataclasses.replace(s, caption=captions[s.id]) for s in samples)
    return dataclasses.replace(samples, samples=said)


@torch.no_grad()
def search_captions(samples: SampleSet, settings: StudySettings, backbone: Backbone) -> dict[str, str]:
    """By sample id: the candidate under which the denoiser errs least, with the technique's own settings."""
    from gate.registry import create_technique

    technique = create_technique("prompt-search")
    technique.fit(backbone, technique.visible(samples))
    found: dict[str, str] = {}
    plan = Plan(backbone, technique, samples, batch_size=settings.batch_size)
    for rows, batch in plan.batches():
        prompts = technique.condition(batch.neutral, batch).prompts
        found |= {s.id: prompt for s, prompt in zip(samples[rows], prompts, strict=True)}
    return found


def label_array(samples: SampleSet) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """(n,) int64."""
    return np.array([s.label for s in samples], np.int64)
