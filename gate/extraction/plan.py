"""How passes are run: batch, processes, threads, layout; and what they cost before they are made.

One rule serves a screening and an extraction, so that both make the same bits; timing (`gate.extraction.tune`) may
replace it by a setting that was seen to give the same bits sooner.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gate.errors import UsageError
from gate.machine import can_fork, forkable_cores

if TYPE_CHECKING:
    import torch

    from gate.backbone import Backbone
    from gate.technique import Technique

Precision = Literal["exact", "fast"]
SMALL_IMAGE = 128  # px; larger backbones fill the cores, and the memory, alone


@dataclass(frozen=True)
class Setting:
    """How a machine runs the passes. batch: images. processes: forks, each with `threads` threads of torch.
    channels_last: layout of the convolutions. compiled: by torch.compile."""

    batch: int
    processes: int = 1
    threads: int = 1
    channels_last: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        words = [f"batches of {self.batch}", f"{self.processes} x {self.threads} threads"]
        words += ["channels last"] if self.channels_last else []
        words += ["compiled"] if self.compiled else []
        return ", ".join(words)

    def with_(self, **changes: Any) -> Setting:
        return dataclasses.replace(self, **changes)


def usual_batch(backbone: Backbone) -> int:
    """A batch that keeps the processor busy without filling memory: 32 at 64 px, 4 at 512 px, GPUs four times that."""
    area = max(1, backbone.image_size // 8) ** 2
    size = max(1, min(32, 16384 // area))
    return size if backbone.device.type == "cpu" else 4 * size


def usual_processes(backbone: Backbone) -> int:
    """One per core where a pass is hundreds of small operations; else 1, with all threads."""
    if backbone.device.type != "cpu" or not can_fork():
        return 1
    return forkable_cores() if backbone.image_size <= SMALL_IMAGE else 1


def usual_setting(backbone: Backbone, precision: Precision = "exact") -> Setting:
    """By rule, from the backbone's size and device alone."""
    import torch

    processes = usual_processes(backbone)
    threads = 1 if processes > 1 else torch.get_num_threads()
    return Setting(usual_batch(backbone), processes, threads, channels_last=precision == "fast")


def dtype_of(precision: Precision, device: torch.device, asked: str = "auto") -> str:
    """What load_backbone is asked for. fast: bfloat16 on a CPU; on a GPU float16, which errs a tenth as much.

    Raises UsageError where precision and dtype contradict each other.
    """
    if asked != "auto":
        if precision == "fast" and asked == "float32":
            raise UsageError("float32 is what --precision exact computes in; leave one of the two out.")
        return asked
    if precision == "exact":
        return "float32" if device.type == "cpu" else "auto"
    return "bfloat16" if device.type == "cpu" else "float16"


@dataclass(frozen=True)
class Cost:
    """GFLOP an image. encode: of the VAE. forward: of one whole denoiser call. reached: share of it, 0 to 1, that is
    spent when the last wanted layer is there. calls: of the denoiser, per technique."""

    encode: float
    forward: float
    reached: float
    calls: tuple[float, ...]

    @property
    def planned(self) -> float:
        """Latents once, forwards that stop."""
        return self.encode + sum(self.calls) * self.forward * self.reached

    @property
    def naive(self) -> float:
        """A loop with hooks that encodes for every technique and runs each forward to its end."""
        return len(self.calls) * self.encode + sum(self.calls) * self.forward


def cost_of(backbone: Backbone, techniques: Sequence[Technique], layers: Sequence[str]) -> Cost:
    """Counted on the meta device; techniques that ask for predictions run to the end, which is not known before."""
    from gate.backbones.sketch import encode_flops, forward_flops

    costs = {row.id: row.cost for row in backbone.layers()}
    reached = max((costs.get(layer, 1.0) for layer in layers), default=1.0)
    calls = tuple(technique.cost.total for technique in techniques)
    return Cost(encode_flops(backbone) / 1e9, forward_flops(backbone) / 1e9, reached, calls)
