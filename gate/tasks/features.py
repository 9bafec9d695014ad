"""Features of one arm of an evaluation: a technique's, or several techniques' under keys of their own."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gate.errors import UsageError
from gate.passes import Plan, stream
from gate.registry import create_technique
from gate.sample import SampleSet
from gate.tasks.amalgamation import key_of
from gate.tasks.config import VANILLA
from gate.technique import Technique

if TYPE_CHECKING:
    from gate.backbone import Backbone

IN_MEMORY = (
    2 << 30
)  # bytes of features; more lie in a scratch file without a name, rows read as they are wanted


@dataclass(frozen=True)
class Source:
    """Where features come from. name: as it was written. technique: "" for the plain backbone."""

    name: str
    technique: str
    timestep: int


def read_source(text: str, timestep: int) -> Source:
    """TECHNIQUE or TECHNIQUE@TIMESTEP. Raises UsageError where it does not read."""
    name, at, number = text.strip().rpartition("@")
    if not at:
        name = text.strip()
    elif not number.isdecimal():
        raise UsageError(f"{text!r} does not read as a source; write TECHNIQUE, or TECHNIQUE@TIMESTEP.")
    chosen = "" if name == VANILLA else create_technique(name).name
    return Source(text.strip(), chosen, int(number) if at else timestep)


def open_technique(source: Source, backbone: Backbone, samples: SampleSet) -> Technique:
    """A source's technique, fitted on the samples that heads are trained on.

    Raises UnsuitableError where it cannot serve the backbone or the samples.
    """
    made = create_technique(source.technique) if source.technique else Technique()
    visible = made.visible(samples)
    made.check(backbone, visible)
    made.fit(backbone, visible)
    return made


def gather(
    backbone: Backbone,
    parts: Sequence[tuple[Source, Technique, Sequence[str]]],
    samples: SampleSet,
    *,
    layers: Sequence[str],
    amalgamated: bool,
    seed: int,
    batch_size: int,
    tick: Callable[[int], None],
    x0: Tensor | None = None,
    rows: slice = slice(None),
) -> dict[str, Tensor]:
    """{key: (n, c, h, w)} float32 on the CPU. Maps come as (n, heads x keys, h, w).

    parts: source, fitted technique, and layers of it that go in without a source. amalgamated: whether the others are
    named with theirs. tick(rows) as rows are done, of each source. x0: latents of all samples, encoded where None.
    rows: of the samples, those that are wanted; n of them.
    """
    found: dict[str, Tensor] = {}
    first, last, _ = rows.indices(len(samples))
    for source, technique, plain in parts:
        wanted = tuple(dict.fromkeys((*layers, *plain)))
        plan = Plan(
            backbone,
            technique,
            samples,
            (source.timestep,),
            (seed,),
            wanted,
            batch_size,
            x0,
            outputs=False,
            rows=rows,
        )
        with contextlib.closing(stream(plan)) as passes:
            for passed in passes:
                for layer, value in passed.response.features.items():
                    keys = [key_of(source.name, layer) if amalgamated else layer] if layer in layers else []
                    for key in [*keys, *([layer] if layer in plain else [])]:
                        if key not in found:
                            found[key] = _room(last - first, value.shape[1:], len(wanted) * len(parts))
                        found[key][passed.rows.start - first : passed.rows.stop - first] = value.float().cpu()
                tick(passed.rows.stop - passed.rows.start)
    return found


def _room(n: int, shape: Sequence[int], among: int) -> Tensor:
    """Room for (n, *shape) float32; in a scratch file where `among` such tensors would be too much for memory."""
    size = n * int(np.prod(shape)) * 4
    if size * among <= IN_MEMORY:
        return torch.empty(n, *shape)
    with tempfile.TemporaryFile() as file:
        mapped: Any = np.memmap(file, np.float32, "w+", shape=(n, *shape))
    return torch.from_numpy(mapped)
