"""What a job must cost: FLOPs counted on the meta device, and the rate at which this machine does such work.

FlopCounterMode does not see fused attention on a CPU; on meta it does.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import device as machine
from benchmarks.job import Job
from gate.backbone import Backbone
from gate.backbones.activations import capture

SHAPES = 8  # the products that take most FLOPs, whose rates are measured
LARGEST = 1 << 28  # elements of a matrix that a rate is measured on: rows are cut where there are more
Shape = tuple[int, int, int]  # m, n, k


@dataclass(frozen=True)
class Work:
    """GFLOP an image: of the VAE's encoder, a whole forward, one that stops after the last layer, a prompt; and the
    products in encoder and whole forward, {(m, n, k): GFLOP}, convolutions as im2col would have them."""

    encode: float
    forward: float
    cut: float
    text: float
    products: Mapping[Shape, float] = field(default_factory=dict)

    def naive(self, job: Job) -> float:
        """Of the job: encode and a whole forward in each pass, a prompt once."""
        return self.passes(job) * (self.encode + self.forward) + len(job.prompts) * self.text

    def planned(self, job: Job) -> float:
        """Of the job: latents once, or there already; forwards that stop after the last layer."""
        encode = 0.0 if job.mode == "cached" else len(job.samples) * self.encode
        return encode + self.passes(job) * self.cut + len({"", *job.prompts}) * self.text

    def passes(self, job: Job) -> int:
        return len(job.samples) * len(job.prompts) * len(job.timesteps) * len(job.seeds)


def counted(backbone: Backbone, layers: tuple[str, ...], batch: int = 1) -> Work:
    """Of one image, in batches of so many."""
    with torch.device("meta"), torch.no_grad():
        made = _sketched(backbone)
        size, side = backbone.image_size, backbone.image_size // made.factor
        channels = int(made.denoiser.config["in_channels"])
        given = _repeated(type(made).blank(made.denoiser.config), batch)
        x, t = torch.empty(batch, channels, side, side), torch.ones(batch)

        def forward() -> Any:
            return made.call(x, t, given, _NoResiduals())

        def cut() -> None:
            with capture(made.denoiser, {k: backbone.layer_paths[k] for k in layers}, stop=True):
                forward()

        def encode() -> Any:
            return made.vae.encode(torch.empty(1, 3, size, size))

        with _Products() as shapes:
            forward()
        products = Counter({shape: flops / batch / 1e9 for shape, flops in shapes.found.items()})
        with _Products() as shapes:
            encode()
        products.update({shape: flops / 1e9 for shape, flops in shapes.found.items()})
        whole, reached, latents = (_flops(work) for work in (forward, cut, encode))
    text = 2e-9 * sum(p.numel() for part in made.encoders for p in getattr(backbone, part).parameters())
    tokens = made.blank(made.denoiser.config).prompt_embeds.shape[1]
    return Work(latents / 1e9, whole / batch / 1e9, reached / batch / 1e9, text * tokens, products)


def attainable(products: Mapping[Shape, float], dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
    """TFLOP/s: of the best product, and of the mix that occurs, each shape at its own measured rate.

    The products with most FLOPs are measured; `covered` says which share of them all that is.
    """
    most = sorted(products.items(), key=lambda item: -item[1])[:SHAPES]
    rows = []
    for (m, n, k), gflop in most:
        shape = (min(m, max(1, LARGEST // max(n, k))), n, k)
        rows.append({"shape": [m, n, k], "gflop": gflop, "tflops": machine.matmul_rate(shape, dtype, device)})
    square = machine.matmul_rate(machine.SQUARE, dtype, device)
    work = sum(row["gflop"] for row in rows)
    mix = work / sum(row["gflop"] / row["tflops"] for row in rows) if rows else square
    return {
        "peak": max([square, *(row["tflops"] for row in rows)]),
        "mix": mix,
        "covered": work / (sum(products.values()) or 1.0),
        "shapes": rows,
    }


class _Products(TorchDispatchMode):
    """Notes every matrix product by its shape; a convolution is the product of its patches with its kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Shape] = Counter()

    def __enter__(self) -> _Products:
        super().__enter__()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        if name in ("mm", "addmm"):
            a, b = args[-2:]
            self._note(a.shape[0], b.shape[1], a.shape[1])
        elif name in ("bmm", "baddbmm"):
            a, b = args[-2:]
            self._note(a.shape[1], b.shape[2], a.shape[2], a.shape[0])
        elif name == "convolution":
            weight = args[1]
            self._note(out.shape[0] * math.prod(out.shape[2:]), weight.shape[0], math.prod(weight.shape[1:]))
        return out

    def _note(self, m: int, n: int, k: int, times: int = 1) -> None:
        self.found[m, n, k] += 2 * m * n * k * times


class _NoResiduals:
    """What a family's `call` reads of a request."""

    residuals: Mapping[str, Any] = {}


def _sketched(backbone: Backbone) -> Any:
    """The backbone with a denoiser and a VAE that have shapes and no numbers."""
    made: Any = copy.copy(backbone)
    for part in ("denoiser", "vae"):
        own: Any = getattr(backbone, part)
        setattr(made, part, type(own).from_config(own.config).eval())
    made.device, made.dtype = torch.device("meta"), torch.float32
    return made


def _repeated(given: Any, batch: int) -> Any:
    return given.rows([0] * batch) if batch > 1 else given


def _flops(work: Any) -> float:
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return float(counter.get_total_flops())


def weight_bytes(*modules: nn.Module) -> int:
    return sum(t.nbytes for m in modules for t in (*m.parameters(), *m.buffers()) if isinstance(t, Tensor))
