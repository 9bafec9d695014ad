from __future__ import annotations

import csv
import dataclasses
import io
import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from fabricated_run import fabricate
from typer.testing import CliRunner

import gate.plugins
from gate.cli import app
from gate.cli.output import to_json
from gate.runs.directory import Run
from gate.technique import Technique

cli = CliRunner()


@dataclasses.dataclass(kw_only=True)
class Wrong(Technique):
    """A technique whose cost cannot be computed."""

    name = "wrong"
    summary = "Breaks when asked for its cost."

    @property
    def cost(self) -> object:  # type: ignore[override]
        raise RuntimeError("no idea")


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plug-ins that fail in two ways beside the healthy ones."""
    real = gate.plugins.entry_points
    strange = [
        EntryPoint("absent", "nowhere:X", "gate.techniques"),
        EntryPoint("wrong", f"{__name__}:Wrong", "gate.techniques"),
        EntryPoint("prompt", "nowhere:Prompt", "gate.techniques"),
    ]
    more = {"gate.techniques": strange}
    monkeypatch.setattr(
        gate.plugins, "entry_points", lambda group: [*more.get(group, ()), *real(group=group)]
    )
    gate.plugins.forget()
    yield
    gate.plugins.forget()


def test_rank_prints_csv_markdown_and_json(run: Run) -> None:
    table = cli.invoke(app, ["rank", str(run.path)])
    assert table.exit_code == 0 and f"Run: {run.path}" in table.stdout.replace("\n", "")
    rows = list(
        csv.DictReader(io.StringIO(cli.invoke(app, ["rank", str(run.path), "--format", "csv"]).stdout))
    )
    assert [r["name"] for r in rows if r["name"] != "vanilla"] == [r.name for r in run.results.ranking]
    assert float(rows[0]["score"]) == run.results.ranking[0].score
    text = cli.invoke(app, ["rank", str(run.path), "--format", "md"]).stdout
    assert "| 1 | `prompt+noise-ensemble` | +25.0* [21.2, 28.8] | ab |" in text
    read = json.loads(cli.invoke(app, ["rank", str(run.path), "--format", "json"]).stdout)
    assert read["extract"].startswith("gate extract --from ")
    assert {k: v for k, v in read.items() if k not in ("run", "extract")} == run.results.model_dump(
        mode="json"
    )


def test_rank_of_no_run(tmp_path: Path) -> None:
    result = cli.invoke(app, ["rank", str(tmp_path)])
    assert result.exit_code == 2 and result.stderr.startswith("gate: ")


def test_json_never_holds_nan() -> None:
    assert json.loads(to_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": {2}})) == {
        "a": None,
        "b": [None, 1.5],
        "c": [2],
    }


# plot


def test_plot_draws_into_another_folder(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", names=("prompt",), probes=False, images=0)
    result = cli.invoke(app, ["plot", str(run.path), "--output", str(tmp_path / "here")])
    assert result.exit_code == 0
    for line in result.stdout.splitlines():
        assert Path(line).is_file() and Path(line).parent == tmp_path / "here"


def test_plot_where_nothing_can_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = cli.invoke(app, ["plot", str(run.path), "--output", str(tmp_path / "file")])
    assert result.exit_code == 3 and "cannot be written" in result.stderr


# list


@pytest.mark.parametrize("what", ["techniques", "probes", "metrics", "layers", "backbones", "data"])
def test_lists_are_objects_with_name_and_summary(what: str) -> None:
    rows = json.loads(cli.invoke(app, ["list", what, "--format", "json"]).stdout)
    assert rows and all(r["name"] and r["summary"] for r in rows)
    assert cli.invoke(app, ["list", what]).exit_code == 0


def test_a_pattern_selects() -> None:
    rows = json.loads(cli.invoke(app, ["list", "techniques", "*prompt", "--format", "json"]).stdout)
    assert {"prompt", "generic-prompt", "shuffled-prompt"} <= {r["name"] for r in rows}
    assert all(r["name"].endswith("prompt") for r in rows)


def test_a_pattern_that_matches_nothing_suggests() -> None:
    result = cli.invoke(app, ["list", "techniques", "promt"])
    assert result.exit_code == 2 and "Did you mean 'prompt'" in result.stderr


@pytest.mark.usefixtures("strangers")
def test_broken_plug_ins_are_listed_with_their_error() -> None:
    result = cli.invoke(app, ["list", "techniques", "--format", "json"])
    assert result.exit_code == 0
    every = json.loads(result.stdout)
    rows = {r["name"]: r for r in reversed(every)}
    assert rows["absent"]["error"] == "ModuleNotFoundError: No module named 'nowhere'"
    assert rows["wrong"]["error"] == "RuntimeError: no idea"
    ours, late = [r for r in every if r["name"] == "prompt"]
    assert "error" not in ours
    assert (
        "gate.techniques.prompt:Prompt of gate-screen" in late["error"] and "nowhere:Prompt" in late["error"]
    )
    table = " ".join(cli.invoke(app, ["list", "techniques"]).stdout.split())
    assert "BROKEN (unknown): ModuleNotFoundError" in table


def test_lists_as_csv_and_markdown() -> None:
    assert cli.invoke(app, ["list", "metrics", "--format", "csv"]).stdout.startswith(
        "name,compares,better,measured,summary"
    )
    assert "| cka |" in cli.invoke(app, ["list", "metrics", "--format", "md"]).stdout


def test_lists_fit_80_columns() -> None:
    for what in ("techniques", "probes", "metrics", "data"):
        assert max(map(len, cli.invoke(app, ["list", what]).stdout.splitlines())) <= 80


# describe


def test_describe_a_technique() -> None:
    text = " ".join(cli.invoke(app, ["describe", "freeu"]).stdout.split())
    for part in ("Si et al. 2023", "s1 = 0.9", "cost 1 (denoiser calls", "gate.techniques.freeu:FreeU"):
        assert part in text


def test_describe_a_variant_with_settings_and_a_composition() -> None:
    facts = json.loads(cli.invoke(app, ["describe", "freeu[b1=1.1]", "--format", "json"]).stdout)
    assert facts["settings"]["b1"] == 1.1 and facts["name"] == "freeu[b1=1.1]"
    both = json.loads(cli.invoke(app, ["describe", "prompt+freeu", "--format", "json"]).stdout)
    assert both["parts"] == ["prompt", "freeu"] and both["needs"] == ["captions"]


@pytest.mark.parametrize(("name", "kind"), [("cka", "metric"), ("linear", "probe")])
def test_describe_metrics_and_probes(name: str, kind: str) -> None:
    facts = json.loads(cli.invoke(app, ["describe", name, "--format", "json"]).stdout)
    assert facts["kind"] == kind and facts["source"] and facts["direction"]
    assert cli.invoke(app, ["describe", name]).exit_code == 0


@pytest.mark.usefixtures("strangers")
def test_describe_a_broken_plug_in() -> None:
    result = cli.invoke(app, ["describe", "absent"])
    assert result.exit_code == 0 and "No module named 'nowhere'" in result.stdout


@pytest.mark.parametrize("name", ["promt", "prompt+freuu", "freeu[b11=1]"])
def test_describe_an_unknown_name(name: str) -> None:
    result = cli.invoke(app, ["describe", name])
    assert result.exit_code == 2 and "Did you mean" in result.stderr


def test_describe_a_metric_with_its_own_reference() -> None:
    facts = json.loads(cli.invoke(app, ["describe", "cosine@own", "--format", "json"]).stdout)
    assert facts["name"] == "cosine@own" and "through the technique itself" in facts["reference"]
    bare = json.loads(cli.invoke(app, ["describe", "cosine", "--format", "json"]).stdout)
    assert "plain backbone" in bare["reference"]
    for unknown in ("eps@own", "cosine@other", "linear@own"):  # these have no second reference
        assert cli.invoke(app, ["describe", unknown]).exit_code == 2


def test_a_search_among_prompts_is_listed_at_its_price() -> None:
    [row] = json.loads(cli.invoke(app, ["list", "techniques", "prompt-search", "--format", "json"]).stdout)
    assert row["cost"]["calls"] == 37  # 14 classes x 2 copies, 4 x 2 more, and the pass itself
