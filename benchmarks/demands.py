"""What extraction is held to, as data: the page sets each beside what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.measure import EXACT, FAST, NAIVE
from benchmarks.parts import EXPLICIT, MAP


@dataclass(frozen=True)
class Demand:
    """Of a cell: how many times as long `slow` takes as `fast`; or, fact "share", how much of the measured matmul rate
    `fast` reaches; or, fact "parts", of the parts of a pass. least, most: the bound."""

    where: str
    text: str
    mode: str
    layers: str
    slow: str
    fast: str
    least: float | None = None
    most: float | None = None
    gpu: bool = False
    model: str = "sd15"
    fact: str = "ratio"


@dataclass(frozen=True)
class KernelDemand:
    """Of a kernel by itself, on a GPU. part: of the file, "head_mean" or "epilogue"."""

    where: str
    text: str
    part: str
    slow: str = ""
    fast: str = ""
    least: float | None = None
    most: float | None = None


HALF, HALF_GPU = "hooks bfloat16", "hooks float16"
CPU, GPU = "CPU", "GPU"

DEMANDS: tuple[Demand | KernelDemand, ...] = (
    Demand(
        CPU,
        "screen, DIFT cut, fast against a naive float32 loop: >= 12x",
        "screen",
        "dift",
        NAIVE,
        FAST,
        12.0,
    ),
    Demand(
        CPU,
        "screen, DIFT cut, the same dtype (bfloat16, channels_last): >= 4x",
        "screen",
        "dift",
        HALF,
        FAST,
        4.0,
    ),
    Demand(CPU, "screen, DIFT cut, the same dtype (float32): >= 4x", "screen", "dift", NAIVE, EXACT, 4.0),
    Demand(
        CPU,
        "screen, practical set, the same dtype (bfloat16): >= 2.7x",
        "screen",
        "practical",
        HALF,
        FAST,
        2.7,
    ),
    Demand(
        CPU,
        "screen, practical set, the same dtype (float32): >= 2.7x",
        "screen",
        "practical",
        NAIVE,
        EXACT,
        2.7,
    ),
    Demand(
        CPU,
        "one cross map against explicit softmax everywhere: >= 1.6x",
        "",
        "maps",
        EXPLICIT,
        MAP,
        1.6,
        fact="parts",
    ),
    Demand(
        CPU,
        "final pass, cold, against hooks in bfloat16 + channels_last: >= 1.2x",
        "cold",
        "dift",
        HALF,
        FAST,
        1.2,
    ),
    Demand(CPU, "the same, legacy set: parity (>= 0.95x)", "cold", "legacy", HALF, FAST, 0.95),
    Demand(
        CPU, "share of the measured matmul rate, exact: >= 70 %", "cold", "dift", "", EXACT, 0.7, fact="share"
    ),
    Demand(
        CPU, "share of the measured matmul rate, fast: >= 70 %", "cold", "dift", "", FAST, 0.7, fact="share"
    ),
    Demand(
        GPU,
        "screen, float16, against the loop at the peers' own batch of 2: >= 8x",
        "screen",
        "dift",
        f"{HALF_GPU} batch 2",
        FAST,
        8.0,
        gpu=True,
    ),
    Demand(
        GPU,
        "final pass, cold, DIFT cut, against hooks in float16: >= 2x",
        "cold",
        "dift",
        HALF_GPU,
        FAST,
        2.0,
        gpu=True,
    ),
    Demand(
        GPU,
        "the same, against a strong naive loop (float16, channels_last, compiled): >= 1.2x",
        "cold",
        "dift",
        f"{HALF_GPU} compiled",
        FAST,
        1.2,
        gpu=True,
    ),
    Demand(
        GPU,
        "cached latents, DIFT cut, against hooks that encode: >= 6x",
        "cached",
        "dift",
        HALF_GPU,
        FAST,
        6.0,
        gpu=True,
    ),
    Demand(GPU, "the same, practical set: >= 4x", "cached", "practical", HALF_GPU, FAST, 4.0, gpu=True),
    Demand(
        GPU,
        "share of the measured matmul rate at batch 32: >= 35 %",
        "cached",
        "dift",
        "",
        FAST,
        0.35,
        gpu=True,
        fact="share",
    ),
    KernelDemand(
        GPU, "head-mean map against explicit softmax: >= 2x", "head_mean", "explicit", "fused", least=2.0
    ),
    KernelDemand(
        GPU,
        "head-mean map against attention without a map: <= 1.15x",
        "head_mean",
        "fused",
        "attention",
        most=1.15,
    ),
    KernelDemand(
        GPU,
        "epilogue: >= 70 % of the measured bandwidth, or dropped for the compiler's",
        "epilogue",
        least=0.7,
    ),
)
