"""The ranking as text, Markdown, CSV and JSON, and the words around it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fabricated_run import NAMES, fabricate
from typer.testing import CliRunner

from gate.cli import app
from gate.report.table import percent, ranking_csv, ranking_markdown, ranking_text
from gate.report.words import closing, legend, short, skipped_lines
from gate.runs.directory import Run
from gate.runs.schema import Skipped

cli = CliRunner()


def test_the_table_fits_80_columns_and_says_everything(run: Run) -> None:
    text = ranking_text(run.results, width=80)
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    assert "higher is better, vanilla = 0" in flat and "n = 24 samples of scenes-held-out" in flat
    for name in NAMES:
        assert any(name in line for line in text.splitlines()), f"{name} is broken over lines"
    assert "1 prompt+noise-ensemble +25.0* [21.2, 28.8] ab +29.0 +21.0 8 32.8" in flat
    assert "shuffled-prompt †" in flat and "† negative control" in flat
    assert "ddim-inversion ‡" in flat and "‡ leak" in flat
    assert "Note: 'cka@own'" in flat and "Winners: prompt+noise-ensemble, noise-ensemble" in flat


def test_vanilla_stands_between_gains_and_losses(run: Run) -> None:
    lines = ranking_text(run.results).splitlines()
    places = {
        name: next(i for i, line in enumerate(lines) if f" {name} " in line)
        for name in NAMES
        if "+" not in name
    }
    vanilla = next(i for i, line in enumerate(lines) if line.strip().startswith("vanilla "))
    for row in run.results.ranking:
        if row["name"] in places:
            assert (places[row["name"]] < vanilla) == (row["score"] >= 0)


def test_vanilla_is_a_row_of_every_format_and_what_is_below_comes_after_it(run: Run) -> None:
    above = [r.name for r in run.results.ranking if r.score >= 0]
    wanted = [*above, "vanilla", *(r.name for r in run.results.ranking if r.score < 0)]
    assert len(above) not in (0, len(wanted) - 1), "the test has something on both sides"
    for form in ("table", "md", "csv"):
        lines = (
            cli.invoke(app, ["rank", str(run.path), "--format", form])
            .stdout.split("Figures are")[0]
            .splitlines()
        )
        starts = {name: rf"[\s|`=0-9]*{re.escape(name)}[\s`|]" for name in wanted}
        if form == "csv":
            starts = {name: rf"[0-9]*,\"?{re.escape(name)}\"?," for name in wanted}
        order = [name for line in lines for name in wanted if re.match(starts[name], line)]
        assert order == wanted, form
    vanilla = json.loads(cli.invoke(app, ["rank", str(run.path), "--format", "json"]).stdout)["vanilla"]
    assert (vanilla["name"], vanilla["score"], vanilla["calls"]) == ("vanilla", 0, 1)


def test_the_verdict_stands_above_the_table_in_every_format(run: Run) -> None:
    first, second = run.results.verdict
    for form in ("table", "md", "json", "csv"):
        result = cli.invoke(app, ["rank", str(run.path), "--format", form])
        if form == "json":
            assert json.loads(result.stdout)["verdict"] == [first, second]
            continue
        text = result.stderr if form == "csv" else result.stdout
        ranks = re.search(
            r"prompt\+noise-ensemble(?!:)", text if form != "csv" else text + " prompt+noise-ensemble"
        )
        assert ranks and text.index(first) < text.index(second) < ranks.start(), form


def test_marks_references_probe_and_cost_are_explained_under_the_table(run: Run) -> None:
    flat = " ".join(ranking_text(run.results).split())
    assert "@own: shift from the technique's own features of the clean image" in flat
    assert "probe gain (pixel-linear: a small model that reads labels or masks off the features" in flat
    assert "denoiser calls and milliseconds of a pass, which is one image at one timestep and noise" in flat
    run.results.score.metrics, before = ["eps"], run.results.score.metrics
    try:
        assert "@own:" not in ranking_text(run.results)
    finally:
        run.results.score.metrics = before


def test_five_notes_at_most_are_shown_and_the_rest_is_counted(run: Run) -> None:
    for count, shown in ((5, 5), (6, 4), (9, 4)):
        many = run.results.model_copy(update={"notes": [f"number {i}." for i in range(count)]})
        notes = [line for line in closing(many) if line.startswith("Note: ")]
        assert len(notes) == 5 and notes[:shown] == [f"Note: number {i}." for i in range(shown)]
        assert count == 5 or notes[-1] == f"Note: {count - 4} more notes are in results.json."


def test_what_was_skipped_for_one_reason_is_one_line() -> None:
    def skip(name: str, reason: str, fix: str, failed: bool = False) -> Skipped:
        return Skipped(name=name, reason=reason, fix=fix, failed=failed)

    lines = skipped_lines(
        [
            skip("prompt", "prompt needs a caption for every image.", "Add NAME.txt."),
            skip("lora", "lora needs training", "Run: gate fit lora"),
            skip("prompt+freeu", "prompt needs a caption for every image.", "Add NAME.txt."),
            skip("odd", "ValueError: odd", "Run: gate check 'odd'", failed=True),
            skip("controlnet", "controlnet needs training", "Run: gate fit controlnet"),
            skip("even", "ValueError: even", "Run: gate check 'even'", failed=True),
        ]
    )
    assert lines == [
        "Skipped prompt, prompt+freeu: needs a caption for every image. Add NAME.txt.",
        "Skipped lora, controlnet: needs training. Run: gate fit NAME",
        "Failed odd: ValueError: odd. Run: gate check 'odd'",
        "Failed even: ValueError: even. Run: gate check 'even'",
    ]


def test_a_long_name_is_folded_not_cut(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", names=("prompt",))
    name = "prompt[quality='high quality, sharp']+noise-ensemble[members=16]+freeu[b1=1.4]"
    run.results.ranking[0].name = name
    text = ranking_text(run.results, width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "[members=16]" in text.replace("\n", "").replace(" ", "")


def test_without_probes_the_table_says_so(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", probes=False)
    text = " ".join(ranking_text(run.results).split())
    assert "no probe counts (no labels or masks)" in text and "probe gain (" not in text


def test_no_winner_and_a_broken_score(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", names=("prompt", "freeu"))
    run.results.winners = []
    for key in ("score", "ci_low", "ci_high", "suppression", "suppression_low", "suppression_high"):
        setattr(run.results.ranking[1], key, None)
    assert "Winners: none" in ranking_text(run.results)
    assert ranking_csv(run.results).splitlines()[3].startswith("2,freeu,,,,,,24,")
    assert ranking_markdown(run.results)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.231, "+23.1"),
        (-0.0004, "0.0"),
        (0.0, "0.0"),
        (-1.254, "-125"),
        (1.0, "+100"),
        (None, "-"),
        (float("nan"), "-"),
    ],
)
def test_percent(value: float | None, text: str) -> None:
    assert percent(value) == text


@pytest.mark.parametrize(
    ("letters", "shown"),
    [
        ("", ""),
        ("a", "a"),
        ("ab", "ab"),
        ("abc", "a-c"),
        ("cdefghil", "c-il"),
        ("acegik", "acegik"),
        ("zAB", "zAB"),
    ],
)
def test_letters_of_ties_are_short(letters: str, shown: str) -> None:
    assert short(letters) == shown
    assert short("a2b2c2") == "a2b2c2"


def test_a_missing_star_beside_an_interval_that_excludes_0_is_explained(run: Run) -> None:
    told = "an interval that excludes 0 without * is told from vanilla alone, but not among 15"
    assert told not in legend(run.results)[-1]
    lone = run.results.model_copy(deep=True)
    lone.ranking[0].verdict = "none"
    assert told in legend(lone)[-1]


def test_many_letters_and_long_names_still_fit_80_columns(run: Run) -> None:
    crowded = run.results.model_copy(deep=True)
    for row in crowded.ranking:
        row.letters = "acegikmoqsuwy"
    text = ranking_text(crowded, width=80)
    assert max(map(len, text.splitlines())) <= 80 and "acegik" in text


def test_what_a_call_brings_is_told_where_there_is_room(run: Run) -> None:
    results = run.results
    first = results.ranking[0]
    brings = percent(first.score / first.cost.calls)
    wide = ranking_text(results, width=150)
    assert "gain a call %" in wide and brings in wide and "gain a call" not in ranking_text(results, width=80)
    assert f"| {brings} |" in ranking_markdown(results)
