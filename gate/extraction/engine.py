"""Passes as features: one chunk of images through techniques, and chunks over processes."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gate.errors import ConfigurationError, GateError
from gate.extraction.head import Amalgamated
from gate.extraction.plan import Setting
from gate.forks import Fork, Rows
from gate.passes import Plan, stream
from gate.sample import SampleSet
from gate.technique import Technique

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.extraction.epilogue import Epilogue

POLL_SECONDS = 0.2
DONE = "done"
Features = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Work:
    """What is extracted: techniques, fitted, by name; layers; a timestep of each, one noise seed; the epilogue.

    maps: those layers that are attention maps. states: the epilogue's projections, by technique.
    """

    backbone: Backbone
    techniques: Mapping[str, Technique]
    layers: tuple[str, ...]
    timesteps: Mapping[str, int]
    seed: int
    epilogue: Epilogue
    maps: frozenset[str] = frozenset()
    states: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


def features_of(
    work: Work, name: str, samples: SampleSet, batch: int, x0: Tensor | None = None, *, raw: bool = False
) -> Features:
    """{layer: (n, c, h, w)} on the CPU through one technique; maps (n, heads, positions, keys).

    x0: (n, c, h, w), their latents, encoded where None. raw: before the epilogue. What lies on a GPU is shrunk there.
    """
    technique = work.techniques[name]
    if isinstance(technique, Amalgamated):

        def shrink(mixed: Features) -> Features:
            return mixed if raw else work.epilogue.apply(mixed, work.states.get(name, {}), work.maps)

        return technique.features(work.backbone, samples, batch, x0, work.seed, shrink)
    plan = Plan(
        work.backbone,
        technique,
        samples,
        (work.timesteps[name],),
        (work.seed,),
        work.layers,
        batch,
        x0,
        outputs=False,
    )
    parts: dict[str, list[Tensor]] = {layer: [] for layer in work.layers}
    with contextlib.closing(stream(plan)) as passes:
        for passed in passes:
            made = work.backbone.unfolded(passed.response.features)
            if not raw:
                made = work.epilogue.apply(made, work.states.get(name, {}), work.maps)
            for layer, value in made.items():
                parts[layer].append(value.cpu())
    return {layer: torch.cat(values) for layer, values in parts.items() if values}


@contextlib.contextmanager
def running(backbone: Backbone, setting: Setting) -> Iterator[None]:
    """The backbone laid out, compiled and threaded by a setting, for a while."""
    threads = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    denoiser: Any = backbone.denoiser
    denoiser.to(memory_format=torch.channels_last if setting.channels_last else torch.contiguous_format)
    try:
        if setting.compiled:
            from gate.backbones.compiled import compiled

            with compiled(backbone):
                yield
        else:
            yield
    finally:
        denoiser.to(memory_format=torch.contiguous_format)
        torch.set_num_threads(threads)


class Share:
    """Chunks that several processes draw from: each is drawn once."""

    def __init__(self, chunks: Sequence[int]) -> None:
        self.chunks = list(chunks)
        self.next: Any = multiprocessing.get_context("fork").Value("q", 0)

    def __iter__(self) -> Iterator[int]:
        while True:
            with self.next.get_lock():
                i = self.next.value
                self.next.value += 1
            if i >= len(self.chunks):
                return
            yield self.chunks[i]


def over_processes(
    chunks: Sequence[int],
    work: Callable[[Iterator[int], Callable[[int], None]], None],
    setting: Setting,
    tick: Callable[[int], None],
) -> None:
    """work(chunks, tick) in this process, or in forks that draw from the same chunks. tick(rows) as rows are done.

    The first error ends all of it; what is written stays. Raises what the work raises.
    """
    if setting.processes <= 1:
        work(iter(chunks), tick)
        return
    share, rows = Share(chunks), Rows()

    def attempt(_: str) -> GateError | str:
        try:
            work(iter(share), rows.add)
        except GateError as error:
            return error
        return DONE

    forks = [
        Fork(f"worker {i}", attempt, setting.threads) for i in range(min(setting.processes, len(chunks)))
    ]
    try:
        running = list(forks)
        while running:
            ready = connection.wait([w for fork in running for w in fork.waits], POLL_SECONDS)
            rows.tick(lambda _, new: tick(new))
            for fork in [f for f in running if f.is_over(ready, float("inf"))]:
                running.remove(fork)
                found, _ = fork.result()
                if isinstance(found, GateError):
                    raise found
                if found != DONE:
                    raise ConfigurationError(f"Extraction stopped: {fork.fate()}.")
        rows.tick(lambda _, new: tick(new))
    except BaseException:
        for fork in forks:
            fork.process.kill()
        raise
    finally:
        for fork in forks:
            fork.end()
