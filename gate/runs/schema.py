"""The schema of results.json, the one place that knows it: what a run writes and every reader gets.

`config` and `environment` stay plain: they say what was asked and where, and a setting that a later gate drops must
not make an old run unreadable.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gate.errors import DamagedError, UsageError
from gate.runs.seal import SEAL, check_seal

SCHEMA_VERSION = 2


class Part(BaseModel):
    """A part of results.json. Unknown fields are ignored: a later gate of the same version may say more.

    `part[name]` reads a field by its name in the file, since tables choose their columns by name.
    """

    model_config = ConfigDict(extra="ignore")

    def __getitem__(self, name: str) -> Any:
        if name not in type(self).model_fields:
            raise KeyError(name)
        return getattr(self, name)


class Bounded(Part):
    """A share of vanilla's error that is gone, with its interval over n samples."""

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int


class Cost(Part):
    """Denoiser calls and milliseconds, per image, timestep and noise; seconds of fitting."""

    calls: float | None
    per_image: float | None
    per_pass: float | None
    ms_per_image: float | None
    fit_seconds: float | None


class Row(Part):
    """One technique of the ranking. None where a number could not be had.

    rank: by score. letters: two techniques share one exactly where they cannot be told apart, as in `tied_with`. p and
    p_holm: one test, alone and adjusted over all techniques; `verdict` follows p_holm, the interval p. degenerate: what
    its features lost of the image, "" where nothing; truth: what it is given of that which probes judge by; carried:
    spread, breadth and image of its features over vanilla's (`gate.carried`), the least over timesteps.
    """

    name: str
    summary: str
    rank: int
    score: float | None
    ci_low: float | None
    ci_high: float | None
    foretold_low: float | None = None
    foretold_high: float | None = None
    n: int
    p: float | None = None
    p_holm: float | None
    verdict: Literal["better", "worse", "none"]
    suppression: float | None
    suppression_low: float | None
    suppression_high: float | None
    probe_gain: float | None
    probe_gain_low: float | None
    probe_gain_high: float | None
    metrics: dict[str, Bounded]
    probes: dict[str, Bounded]
    images: dict[str, Bounded | None]
    feature_scale: float | None
    cost: Cost
    tied_with: list[str]
    letters: str = ""
    negative_control: bool
    leak: str
    degenerate: str = ""
    truth: list[str] = []
    carried: dict[str, float | None] = {}
    settings: dict[str, Any]
    source: str


class Skipped(Part):
    """A technique that was not ranked, why, and what to do; `failed` where it broke rather than did not fit."""

    name: str
    reason: str
    fix: str = ""
    failed: bool


class Axes(Part):
    """What the axes of scores.safetensors mean, by position."""

    technique: list[str]
    sample: list[str]
    timestep: list[int]
    alpha_bar: list[float | None]
    sigma: list[float | None] = []
    seed: list[int]
    layer: list[str]
    picture_layer: str = ""
    image_sample: list[str]
    classes: list[str]
    mask_classes: list[str]


class Data(Part):
    """The samples, and the files that were left out with their reasons."""

    name: str
    n: int
    skipped: list[tuple[str, str]]


class Rule(Part):
    """The fitted rule that predicted: coefficients of shares, how far the truth strays (`gate.ranking.entry.Rule`)."""

    name: str
    coefficients: dict[str, float]
    floor: float
    slope: float
    n: int
    source: str = ""


class Score(Part):
    """What the score is made of. A rule predicts; without one, weights average suppression and probe gain."""

    metrics: list[str]
    probes: list[str]
    weights: dict[str, float]
    rule: Rule | None = None
    confidence: float = 0.95


class Vanilla(Part):
    """The plain backbone: its own numbers, in each measure's unit; by definition a score of 0 at 1 call."""

    name: str = "vanilla"
    score: float = 0.0
    calls: float = 1.0
    metrics: dict[str, float | None]
    probes: dict[str, float | None]
    ms_per_image: float | None


class Results(Part):
    """results.json.

    learned: the techniques whose state lies in states.safetensors; None where the gate that wrote it kept none.
    """

    schema_version: Literal[2]
    gate_version: str
    created: str
    dropped_channels: dict[str, list[int]] = {}
    seeds: list[int]
    axes: Axes
    data: Data
    basis: str
    score: Score
    ranking: list[Row]
    skipped: list[Skipped]
    winners: list[str]
    learned: list[str] | None = None
    verdict: list[str] = []
    notes: list[str]
    vanilla: Vanilla
    config: dict[str, Any]
    environment: dict[str, Any]
    hashes: dict[str, str]
    seconds: float
    digest: str = Field(
        "", exclude=True
    )  # the seal of the file (`gate.runs.seal`); the numbers carry on without it


def read_results(raw: Any, source: str) -> Results:
    """Parsed JSON as results, upgraded where it is older. source: the file, for the message.

    Raises DamagedError, in a sentence, where it is not what gate wrote, and UsageError where it is of a version that
    this gate cannot read.
    """
    cure = f"make it anew: gate resume {Path(source).parent}"
    version = raw.get("schema_version") if isinstance(raw, Mapping) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise DamagedError(f"{source} is damaged (no schema_version); {cure}")
    if version > SCHEMA_VERSION:
        raise UsageError(
            f"{source} was written by a newer gate (schema {version}); upgrade gate-screen to read it."
        )
    if version < 1:
        raise UsageError(f"{source} has schema {version}, which no gate can read; screen again.")
    check_seal(raw, source, cure)
    try:
        if "scores" in raw["hashes"] and not raw.get(SEAL):
            raise DamagedError(f"{source} has lost its checksum; {cure}")
        return Results.model_validate(_from_1(raw) if version == 1 else raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise DamagedError(f"{source} is damaged ({where}: {first['msg']}); {cure}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"{source} is damaged; {cure}") from error


def _from_1(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Version 1 called a negative control `control`, and had room for one image metric, `image`."""

    def row(old: Mapping[str, Any]) -> dict[str, Any]:
        new = {k: v for k, v in old.items() if k not in ("control", "image")}
        new["negative_control"] = old["control"]
        new.setdefault("images", {"image": old["image"]} if old.get("image") else {})
        return new

    return {**raw, "schema_version": SCHEMA_VERSION, "ranking": [row(r) for r in raw["ranking"]]}


def check_shapes(arrays: Mapping[str, NDArray[Any]], axes: Axes, source: str) -> None:
    """Refuse arrays that do not have the axes that results.json says. Raises DamagedError.

    Further axes are a measure's own columns.
    """
    t, s, n = len(axes.timestep), len(axes.seed), len(axes.sample)
    wanted = {
        "shift": (t, s, len(axes.layer), n),
        "prediction": (t, s, n),
        "probe": (t, s, n),
        "refit": (t, s, n),
        "image": (len(axes.image_sample),),
        "feature-scale": (len(axes.layer),),
        "carried": (t, 3),
        "unseen": (3,),
    }
    for key, array in arrays.items():
        expected = wanted.get(key.partition("/")[0])
        if expected is None:
            continue
        shape = (len(axes.technique), *expected)
        if array.shape[: len(shape)] != shape:
            raise DamagedError(
                f"{source}: {key} has shape {array.shape}, but the axes of results.json say {shape}; "
                "the two files are not of one run, so screen again."
            )
