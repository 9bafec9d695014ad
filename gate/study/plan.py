"""What a study computes: domains, timesteps, techniques, sizes of the pools, and the order of its cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gate.errors import UsageError, unknown_name
from gate.registry import create_technique

VANILLA = "vanilla"
# those of the screen, the guiders by two; those that share calls with another come one after the other. On `tiny`,
# caption is prompt; prompt-search is prompt under the captions that a search wrote (domain "searched")
TECHNIQUES = (
    VANILLA,
    "noise-ensemble",
    "timestep-ensemble",
    "ddim-inversion",
    "prompt+ddim-inversion",
    "guidance-cfg",
    "prompt+guidance-cfg",
    "guidance-pag",
    "prompt",
    "generic-prompt",
    "shuffled-prompt",
    "controlnet",
    "prompt+controlnet",
    "prompt+controlnet+lora",
    "lora",
    "lora-over-fitted",
    "t2i-adapter",
    "prompt+t2i-adapter",
    "ip-adapter",
    "prompt+ip-adapter",
    "textual-inversion",
    "freeu",
    "shared-timestep",
    "cleandift",
    "prompt+cleandift",
)


@dataclass(frozen=True)
class Domain:
    """Images and their captions.

    data: the named data set. seed: of its scenes, so that no two domains share an image unless they mean to. base: the
    domain that has the same images and truth, where captions alone differ: techniques that read none are its.
    searched: whether `prompt-search` writes the captions. timesteps: None takes the study's.
    """

    name: str
    data: str
    seed: int
    base: str = ""
    searched: bool = False
    timesteps: tuple[int, ...] | None = None


MAIN = (300, 50)  # in every domain; a study fits its rules on as many timesteps, its first
DOMAINS: tuple[Domain, ...] = (
    Domain("held-out", "scenes-held-out", 101),
    Domain("sketches", "sketches-held-out", 102),
    Domain("cluttered", "cluttered-held-out", 103),
    Domain("trained", "scenes-trained", 104, timesteps=MAIN),
    Domain("few-classes", "few-classes", 105, timesteps=MAIN),
    Domain("degraded", "degraded-held-out", 106, timesteps=MAIN),
    Domain("objects", "objects-held-out", 107, timesteps=MAIN),
    Domain("unnamed", "unnamed-held-out", 101, base="held-out", timesteps=MAIN),
    Domain("searched", "scenes-held-out", 101, base="held-out", searched=True, timesteps=MAIN),
)


@dataclass(frozen=True)
class StudySettings:
    """One study. Numbers of images are disjoint parts of a domain.

    screening: images that cheap quantities are drawn from; sizes: of the draws, each n at most `draws` times, without
    overlap. train, test: of the heads, head_seeds of them a task. pairs: to match, in training and test each.
    timesteps: the first two in every domain, and what rules are fitted on; the others where a domain sets none, to
    judge the rules at timesteps that they do not know. techniques, domains: names.
    image_samples: of the img2img. batch_size: images a denoiser call; it changes no result beyond rounding.
    """

    backbone: str = "tiny"
    domains: tuple[str, ...] = tuple(d.name for d in DOMAINS)
    timesteps: tuple[int, ...] = (300, 50, 150, 500)
    techniques: tuple[str, ...] = TECHNIQUES
    screening: int = 256
    train: int = 400
    test: int = 256
    pairs: int = 200
    sizes: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    draws: int = 8
    head_seeds: int = 3
    tasks: tuple[str, ...] = ("segmentation-linear", "classification", "correspondence-conv[epochs=5]")
    layers: tuple[str, ...] = ("paper",)
    image_samples: int = 8
    batch_size: int = 32
    seed: int = 0
    settings_version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if self.techniques[:1] != (VANILLA,):
            object.__setattr__(self, "techniques", (VANILLA, *(t for t in self.techniques if t != VANILLA)))
        for name in self.domains:
            find_domain(name)
        for name in self.techniques[1:]:
            create_technique(name)
        if max(self.sizes) > self.screening:
            raise UsageError(
                f"A draw of {max(self.sizes)} does not fit into {self.screening} screening images."
            )

    @property
    def fitted(self) -> tuple[int, ...]:
        """The timesteps that rules are fitted on."""
        return self.timesteps[: len(MAIN)]

    @property
    def images(self) -> int:
        """Of a domain, in all."""
        return self.screening + self.train + self.test

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


MINIATURE: dict[str, Any] = {
    "domains": ("held-out", "sketches", "unnamed"),
    "timesteps": (300,),
    "techniques": (VANILLA, "prompt", "controlnet", "shuffled-prompt"),
    "screening": 32,
    "train": 32,
    "test": 24,
    "pairs": 16,
    "sizes": (16, 32),
    "draws": 2,
    "head_seeds": 2,
    "tasks": ("segmentation-linear[epochs=2]", "classification[epochs=5]", "correspondence-conv[epochs=1]"),
    "image_samples": 0,
}


@dataclass(frozen=True)
class CellKey:
    """The unit of work and of resuming: one technique at one timestep of one domain."""

    domain: str
    timestep: int
    technique: str


@dataclass(frozen=True)
class Group:
    """Cells that share images, noise and vanilla's pass."""

    domain: Domain
    timestep: int
    techniques: tuple[str, ...]

    @property
    def keys(self) -> list[CellKey]:
        return [CellKey(self.domain.name, self.timestep, name) for name in self.techniques]


def find_domain(name: str) -> Domain:
    """Raises UsageError for an unknown one."""
    known = {d.name: d for d in DOMAINS}
    if name not in known:
        raise unknown_name("domain", name, known, listing="gate study --help")
    return known[name]


def groups_of(settings: StudySettings) -> list[Group]:
    """All work, what tells most first: one timestep over all domains, then the next."""
    found = []
    for i, t in enumerate(settings.timesteps):
        for name in settings.domains:
            domain = find_domain(name)
            if i >= len(MAIN) and domain.timesteps is not None:
                continue
            based = domain.base in settings.domains
            chosen = [n for n in settings.techniques if reads_captions(n)] if based else settings.techniques
            found.append(Group(domain, t, tuple(chosen)))
    return found


def reads_captions(name: str) -> bool:
    """Whether other captions make another technique of it."""
    return name != VANILLA and "captions" in create_technique(name).needs


def draws_of(settings: StudySettings) -> list[tuple[int, slice]]:
    """(n, rows of the screening images) of every draw; draws of one size are disjoint."""
    return [
        (n, slice(i * n, (i + 1) * n))
        for n in settings.sizes
        for i in range(min(settings.draws, settings.screening // n))
    ]


def weight_of(key: CellKey) -> float:
    """What a cell costs, in calls of the denoiser: for the time that is left."""
    return 2.0 + (1.0 if key.technique == VANILLA else create_technique(key.technique).cost.total)


def all_keys(groups: Sequence[Group]) -> Iterator[CellKey]:
    for group in groups:
        yield from group.keys
