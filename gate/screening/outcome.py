"""What a screening comes to: finished, or interrupted with what is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gate.errors import EXIT_PARTIAL, UsageError
from gate.runs.directory import Run
from gate.runs.schema import Results

Log = Callable[[str], None]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a screening; what was finished is kept in `run`.

    screening: where all numbers are there and only figures are missing.
    """

    def __init__(self, run: Path, screening: Screening | None = None) -> None:
        self.run, self.screening = run, screening
        self.told = (
            f"the numbers are complete, figures are missing; draw them with: gate resume {run}"
            if screening
            else f"finish it with: gate resume {run}"
        )
        super().__init__(f"interrupted; {self.told}")


@dataclass(frozen=True, repr=False)
class Screening:
    """A finished screening: its run directory and results.json."""

    path: Path
    results: Results

    def __repr__(self) -> str:
        ranked, data = self.results.ranking, self.results.data
        best = f"first: {ranked[0].name}" if ranked else "none ranked"
        return (
            f"Screening of {len(ranked)} techniques on {data.n} images of {data.name}, {best}\n"
            f"{self.path}: winners {', '.join(self.results.winners) or 'none'}; see .table(), .results, .plot()"
        )

    @property
    def exit_code(self) -> int:
        """0, or 7 where a technique failed."""
        return EXIT_PARTIAL if any(s.failed for s in self.results.skipped) else 0

    def winners(self) -> list[str]:
        """Techniques that beat vanilla beyond chance and are no controls, best first."""
        return list(self.results.winners)

    def table(self) -> str:
        """The ranking as plain text."""
        from gate.report.shown import shown
        from gate.report.table import ranking_text

        return ranking_text(shown(self.results))

    def plot(self, folder: str | Path | None = None, *, missing: bool = False) -> list[Path]:
        """Draw every figure, as PNG and SVG; by default into the run's `figures/`. missing: those alone."""
        from gate.report.figures import draw_all

        where = Path(folder) if folder else self.path / "figures"
        return draw_all(Run(self.path, self.results), where, missing=missing)

    def save(self, folder: str | Path) -> Path:
        """Copy the run directory."""
        import shutil

        try:
            return Path(shutil.copytree(self.path, folder))
        except FileExistsError as error:
            raise UsageError(f"{folder} exists already; choose another folder.") from error


def draw(done: Screening, log: Log, *, missing: bool = False) -> None:
    """The figures; without them the numbers are complete all the same, and safe on the disk."""
    try:
        done.plot(missing=missing)
    except KeyboardInterrupt as stop:
        raise Interrupted(done.path, done) from stop
    except Exception as error:
        log(
            f"the figures could not be drawn ({type(error).__name__}: {error}); the numbers are complete. "
            f"Draw them with: gate plot {done.path}"
        )
