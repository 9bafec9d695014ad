"""Names, captions, labels and files of strangers are printed and drawn, and no terminal obeys them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
import warnings
from pathlib import Path

import pytest
from fabricated_run import NAMES, fabricate
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from gate.cli import app
from gate.names import HOSTILE, harmless
from gate.report.shown import shown
from gate.report.table import print_ranking
from gate.runs.directory import open_run, write_sealed

STRANGE = {
    "colour": "\x1b[31mred\x1b[0m",
    "title of the window": "\x1b]0;pwned\x07",
    "link": "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",
    "one-byte escape": "\x9b31mred\x9d0;pwned\x9c",
    "lines": "one\ntwo\r\nthree\u2028four\x0bfive\x85six",
    "back over it": "good\b\b\b\bevil\x7f\x00",
    "right to left": "\u202egnp.exe\u2066x\u2069\u200f",
    "formula": r"$\frac{1}{$ $x^2$ $\undefined{$",
    "markup": "[bold red]x[/] [link=http://evil]y[/link] [/nothing]",
    "markdown": "a|b `c` ***d***",
    "long": "x" * 300,
    "empty": "",
}
OBEYED = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
)  # a newline ends a line of ours


def strange_run(folder: Path, strange: str) -> Path:
    """A run with the text wherever a stranger's can be."""
    names = tuple(NAMES)[:4]
    run = fabricate(folder, names=names)
    raw = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    raw["axes"]["technique"][1] = f"prompt{strange}"
    for row in raw["ranking"]:
        if row["name"] == names[0]:
            row["name"] = f"prompt{strange}"
    raw["ranking"][0]["tied_with"] = [strange]
    raw["axes"]["layer"][0] = raw["axes"]["classes"][0] = raw["data"]["name"] = strange
    raw["config"]["backbone"] = strange
    raw["data"]["skipped"] = [[f"{strange}.png", strange]]
    raw["skipped"][0].update(name=strange, reason=strange, fix=strange)
    raw["notes"] = [strange]
    raw["winners"] = [strange]
    raw["hashes"] = dict(run.results.hashes)
    config = {"config": raw["config"], "hashes": {k: raw["hashes"][k] for k in ("weights", "samples")}}
    write_sealed(folder / "run.json", config)
    write_sealed(folder / "results.json", raw)
    return folder


def test_harmless_spells_out_what_a_terminal_obeys_and_leaves_text_alone() -> None:
    assert harmless("\x1b[31m\n\x9b\u202e") == r"\x1b[31m\n\x9b\u202e"
    for plain in ("naïve café 猫 кошка 👩\u200d🚀", "$x$ [bold] | `a`", "a\u00a0b"):
        assert harmless(plain) == plain
    for c in map(chr, range(sys.maxunicode + 1)):
        if HOSTILE.match(c):
            assert harmless(c).isascii() and harmless(c).isprintable()


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("format", ["table", "csv", "md", "json"])
def test_every_format_survives_strange_text_and_prints_it_harmless(
    tmp_path: Path, kind: str, format: str
) -> None:
    strange = STRANGE[kind]
    run = strange_run(tmp_path / "run", strange)
    done = CliRunner().invoke(app, ["rank", str(run), "--format", format])
    assert done.exit_code == 0, done.output
    for text in (done.stdout, done.stderr):
        assert not OBEYED.search(text)
    if format == "csv":
        rows = list(csv.DictReader(io.StringIO(done.stdout)))
        assert f"prompt{harmless(strange)}" in [r["name"] for r in rows]
        assert len(done.stdout.splitlines()) == len(rows) + 1
    elif format == "json":
        read = json.loads(done.stdout)
        assert read["notes"] == [strange], "JSON keeps what was there"
    elif format == "md":
        assert f"prompt{harmless(strange)}".replace("|", "\\|") in done.stdout
    else:
        flat = re.sub(r"\s", "", done.stdout)
        assert re.sub(r"\s", "", harmless(strange)) in flat


def test_a_terminal_with_colours_gets_our_escapes_alone(tmp_path: Path) -> None:
    run = open_run(strange_run(tmp_path / "run", STRANGE["colour"] + STRANGE["markup"]))
    stream = io.StringIO()
    print_ranking(shown(run.results), Console(file=stream, force_terminal=True, width=100))
    ours = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert "\x1b" not in ours and r"\x1b[31mred" in ours and "[bold" in ours


@pytest.mark.slow
@pytest.mark.parametrize("kind", STRANGE)
def test_every_figure_survives_strange_text(tmp_path: Path, kind: str) -> None:
    folder = strange_run(tmp_path / "run", STRANGE[kind])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph")
        done = CliRunner().invoke(app, ["plot", str(folder)])
    assert done.exit_code == 0, done.output
    assert {Path(f).suffix for f in done.stdout.split()} == {".png", ".svg"}
    assert len(done.stdout.splitlines()) >= 12


def test_a_formula_in_a_name_is_drawn_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gate.report import figures

    real = figures.figures()
    monkeypatch.setattr(figures, "figures", lambda: {"ranking": real["ranking"]})
    folder = strange_run(tmp_path / "run", STRANGE["formula"])
    done = CliRunner().invoke(app, ["plot", str(folder)])
    assert done.exit_code == 0 and len(done.stdout.splitlines()) == 2, done.output


def test_the_lists_print_strange_plug_ins_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    from gate.cli.output import Format, echo_rows

    for format in ("table", "csv", "md", "json"):
        for strange in STRANGE.values():
            stream = io.StringIO()
            monkeypatch.setattr("sys.stdout", stream)
            echo_rows([{"name": strange}], {"name": lambda row: row["name"]}, Format(format))
            monkeypatch.undo()
            assert not OBEYED.search(stream.getvalue()), (format, strange)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="file names are text elsewhere")
def test_a_screen_of_strange_images_with_a_strange_setting(tmp_path: Path) -> None:
    """Folder, classes, captions, a broken file with a name that is no text, and a setting: all strange."""
    folder = tmp_path / "photos\x1b[31m[bold]"
    colour, markup = STRANGE["colour"], "[bold]$\\frac{1}{$"
    for i in range(16):
        place = folder / (colour if i % 2 else markup.replace("/", ""))
        place.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((64, 64), 20 + i).convert("RGB").save(place / f"{i}.png")
        (place / f"{i}.txt").write_text("".join(STRANGE.values()), encoding="utf-8")
    (folder / markup / os.fsdecode(b"\xff\x1b]0;x\x07.png")).write_bytes(b"no image")
    flags = (
        "--samples 16 --seeds 1 --timesteps 50 --image-samples 2 --image-steps 2 --folds 2 --resamples 200"
    )
    run, techniques = tmp_path / "run", f"freeu,prompt[quality='{colour} {markup}']"
    done = CliRunner().invoke(
        app,
        ["screen", "--images", str(folder), "--techniques", techniques, *flags.split(), "--output", str(run)],
    )
    assert done.exit_code == 0, done.output
    assert not OBEYED.search(done.stdout) and not OBEYED.search(done.stderr)
    assert len(list((run / "figures").glob("*.svg"))) >= 5  # without a probe that says anything
    ranked = CliRunner().invoke(app, ["rank", str(run), "--format", "csv"])
    assert r"prompt[quality='\x1b[31mred\x1b[0m [bold]$" in ranked.stdout and not OBEYED.search(ranked.output)
    again = CliRunner().invoke(app, ["verify", str(run), "--quiet"])
    assert again.exit_code == 0 and not OBEYED.search(again.output), again.output
