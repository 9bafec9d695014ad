"""`python -m tests.mutation`: do the tests notice when the arithmetic is wrong?

Draws mutants of ranking, statistics, measuring, metrics and probes, and runs the tests of each one's file against it.
Fails when a mutant survives that tests/mutation/explained.txt does not account for. It takes minutes: no part of the
suite.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from tests.mutation.mutants import Mutant, explanations, mutants, sample
from tests.mutation.trial import Outcome, trial, warm

ROOT = Path(__file__).parents[2]
EXPLAINED = Path(__file__).with_name("explained.txt")

# on paper, in seconds; the other tests of measuring take minutes
MEASURING = ("tests/screening/test_evidence.py", "tests/screening/test_results.py")
PAIRS = "tests/ranking/test_interactions.py"
RANKING = (
    "tests/ranking/test_measures.py",
    "tests/ranking/test_notes.py",
    "tests/ranking/test_rank.py",
    "tests/ranking/test_rules.py",
    PAIRS,
)
METRICS = "tests/metrics/test_metric_contract.py"
REFITS = "tests/probes/test_refits.py"
PROBES = (
    "tests/probes/test_probes.py",
    "tests/probes/test_folds_and_figures.py",
    REFITS,
    "tests/probes/test_brier.py",
    PAIRS,
)
# Patterns of mutated files, and the tests that ought to notice, nearest first.
TESTS: dict[str, tuple[str, ...]] = {
    "gate/ranking/statistics.py": ("tests/ranking/test_statistics.py", *RANKING),
    "gate/ranking/[!_]*.py": (*RANKING, REFITS),
    "gate/measure.py": ("tests/ranking/test_measures.py", PROBES[1], "tests/ranking/test_rank.py", PAIRS),
    "gate/ridge.py": PROBES,
    "gate/screening/measure.py": MEASURING,
    "gate/screening/measured.py": MEASURING,
    "gate/screening/results.py": MEASURING,
    "gate/metrics/laplacian*.py": ("tests/metrics/test_laplacian.py", METRICS),
    "gate/metrics/c*.py": ("tests/metrics/test_cosine_and_cka.py", METRICS),
    "gate/metrics/eps.py": ("tests/metrics/test_eps.py", METRICS),
    "gate/metrics/image.py": ("tests/metrics/test_image.py", METRICS),
    "probes/clusters.py": ("tests/probes/test_clusters.py", *PROBES),
    "probes/two_sample.py": ("tests/probes/test_two_sample.py", *PROBES),
    "probes/zero_shot.py": ("tests/probes/test_zero_shot.py", *PROBES),
    "probes/[!_]*.py": PROBES,
    "gate/passes.py": ("tests/test_passes.py", *MEASURING, "tests/test_calls.py"),
}


def tests_of(file: str) -> tuple[str, ...]:
    """The tests of a mutated file: those of the first pattern that it matches."""
    return next(tests for pattern, tests in TESTS.items() if fnmatch(file, pattern))


def targets(patterns: Sequence[str]) -> list[str]:
    """The files to mutate, relative to the checkout; all where no pattern is given."""
    every = sorted({path.relative_to(ROOT).as_posix() for pattern in TESTS for path in ROOT.glob(pattern)})
    return [file for file in every if not patterns or any(fnmatch(file, p) for p in patterns)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--files", nargs="*", default=[], metavar="PATTERN", help="such as 'gate/metrics/*'")
    parser.add_argument("--limit", type=int, default=250, help="mutants to draw; 0 takes them all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    every = {file: mutants(file, (ROOT / file).read_text("utf-8")) for file in targets(options.files)}
    total = sum(map(len, every.values()))
    drawn = sample(every, options.limit or total, seed=options.seed)
    reasons = explanations(EXPLAINED.read_text("utf-8"))
    print(f"{len(drawn)} of {total} mutants of {len(every)} files", flush=True)

    warm()
    outcomes: Counter[Outcome] = Counter()
    explained, unexplained = 0, 0
    limits: dict[str, float] = {}
    for mutant in drawn:
        if mutant.file not in limits:
            limits[mutant.file] = _time_limit(mutant.file)
        mutated = mutant.applied((ROOT / mutant.file).read_text("utf-8"))
        outcome = trial(mutant.file, mutated, tests_of(mutant.file), limits[mutant.file])
        outcomes[outcome] += 1
        if outcome == "survived":
            explained += mutant.key in reasons
            if mutant.key not in reasons:
                unexplained += 1
                print(_shown(mutant), flush=True)
    print(
        f"{len(drawn)} mutants: {outcomes['killed']} killed, {outcomes['timed out']} timed out, "
        f"{explained} explained, {unexplained} survived."
    )
    return 1 if unexplained else 0


def _time_limit(file: str) -> float:
    """Seconds that the tests of a file may take, from what they take when nothing is wrong."""
    start = time.monotonic()
    if trial(file, (ROOT / file).read_text("utf-8"), tests_of(file), 600) != "survived":
        raise SystemExit(f"The tests of {file} fail without any mutant: {', '.join(tests_of(file))}")
    seconds = time.monotonic() - start
    print(f"# {file}: its tests take {seconds:.0f} s", flush=True)
    return 10 + 4 * seconds


def _shown(mutant: Mutant) -> str:
    where, before, after = mutant.key
    return f"\n{mutant.file}:{mutant.line}\n{where}\n- {before}\n+ {after}"


if __name__ == "__main__":
    raise SystemExit(main())
