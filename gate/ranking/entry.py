"""What a ranking is made from, and what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gate.errors import UsageError
from gate.ranking.statistics import Floats, Interval

Basis = Literal["shift and probes", "shift only", "probes only"]
Verdict = Literal["better", "worse", "none"]


@dataclass(frozen=True)
class Evidence:
    """What was measured for one technique, or for vanilla; n samples, the same and in the same order for all.

    shifts: metric -> (n, cells), or (n, cells, m) with m columns; a cell is a (timestep, layer), or a timestep for
    metrics without layers; averaged over noise seeds, but for statistics of the set, where each seed is a cell.
    counts: probe -> (n, cells, ...), what it gave for each sample (confusion counts (n, cells, k, k), units are images
    or pixels), summed over noise seeds. What was not measured is absent.
    refits: probe -> (n, cells), what the error would change by if the probe were trained without this sample, or
    (n, cells, 1 + r), beside it r sketches of what pairs of samples do (`gate.probe.random_signs`).
    """

    shifts: Mapping[str, Floats]
    counts: Mapping[str, Floats] | None = None
    refits: Mapping[str, Floats] | None = None

    def get(self, kind: Literal["shift", "probe"], name: str) -> Floats | None:
        """The array of one metric or probe; None when not measured."""
        return self.shifts.get(name) if kind == "shift" else (self.counts or {}).get(name)


@dataclass(frozen=True)
class Weights:
    """Weights of mean suppression and mean error removed in the GATE score; each in [0, 1], together 1."""

    suppression: float = 0.5
    probe: float = 0.5

    def __post_init__(self) -> None:
        if min(self.suppression, self.probe) < 0 or not math.isclose(self.suppression + self.probe, 1.0):
            raise UsageError(
                f"Score weights must not be negative and must add up to 1; got {self.suppression} for "
                f"suppression and {self.probe} for probes."
            )


@dataclass(frozen=True)
class Rule:
    """How shares become a prediction: of the error that a head trained in full makes, the share that will be gone.

    name: what it needs beside images: "masks", "labels" or "" for neither. coefficients: of each metric ("cosine@own")
    or probe, in the prediction, a plain sum without constant, so vanilla is predicted 0. floor, slope: the truth strays
    from a prediction s by sqrt(floor^2 + (slope s)^2) (a standard deviation), over tasks, domains and seeds of
    training, beside what the sample of images adds. n: the number of images that it is for. source: what it was fitted
    on.
    """

    name: str
    coefficients: Mapping[str, float]
    floor: float
    slope: float
    n: int
    source: str = ""


@dataclass(frozen=True)
class Entry:
    """One technique's place. All intervals are shares of vanilla's error removed, higher is better.

    rank: the place of the score as it is printed; equal prints share it. What cannot be told apart is another matter:
    tied_with names all those that this one cannot be told from, corrected over all pairs, and `letters` says the same
    in short: two techniques share a letter exactly where neither can be told from the other.
    p: two-sided, against vanilla; at most 1 - confidence just where the score's interval excludes 0. p_holm: the same
    test, adjusted over all techniques. verdict: "better" or "worse" than vanilla where p_holm is at most
    1 - confidence. So an interval that excludes 0 without a verdict has p <= 0.05 < p_holm: among so many techniques
    one such is to be expected by chance.
    score: its interval is over samples, as are p, ties and verdict: what repeats on other images of this kind.
    foretold: the same number with the interval in which a fitted rule (`Ranking.rule`) foretells a trained head's, over
    tasks and domains too, and so wider; None without a rule.
    mean_suppression, mean_error_removed: of the metrics and probes that a reader is shown; None where there are none.
    """

    name: str
    rank: int
    score: Interval
    p_holm: float
    verdict: Verdict
    tied_with: tuple[str, ...]
    mean_suppression: Interval | None
    mean_error_removed: Interval | None
    suppression: Mapping[str, Interval] = field(default_factory=dict)
    probes: Mapping[str, Interval] = field(default_factory=dict)
    foretold: Interval | None = None
    p: float = math.nan
    letters: str = ""

    @property
    def loses_probe(self) -> bool:
        """Whether the probe gain's interval lies wholly below 0: such a technique is no winner."""
        return self.mean_error_removed is not None and self.mean_error_removed.high < 0


@dataclass(frozen=True)
class Ranking:
    """Techniques by score, best first, and what the score was made of.

    rule: what scored; None where nothing fitted could, and weights did. score_metrics, score_probes: those that are
    shown as suppression and probe gain, and, without a rule, scored (measured, and with an error to remove).
    n: samples. confidence: of every interval; 1 - confidence is the level of p_holm. notes: plain sentences.
    """

    entries: tuple[Entry, ...]
    basis: Basis
    weights: Weights
    score_metrics: tuple[str, ...]
    score_probes: tuple[str, ...]
    n: int
    confidence: float
    notes: tuple[str, ...]
    rule: Rule | None = None
