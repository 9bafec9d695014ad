"""The code of docs/stores.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from small_stores import make_store

PAGE = Path(__file__).parents[2] / "docs/stores.md"


def test_the_code_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(tmp_path / "STORE")
    make_store(tmp_path / "TAR", layout="webdataset")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    printed = re.search(r"print\(store\)  # (.*)", blocks[0])
    assert printed and capsys.readouterr().out.splitlines() == [printed[1]]
    assert names["x"].shape == (10, 24) and names["array"].shape == (3, 4, 2)  # type: ignore[attr-defined]


def test_the_page_names_every_field_of_store_json(tmp_path: Path) -> None:
    import json

    said = json.loads((make_store(tmp_path / "STORE") / "store.json").read_text(encoding="utf-8"))
    table = PAGE.read_text(encoding="utf-8").partition("## store.json")[2]
    rows = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(said)
