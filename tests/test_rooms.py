"""The house as docs/architecture.md draws it: no circle of imports, no arrow between rooms that its table lacks."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import gate

ROOT = Path(gate.__file__).parent
PAGE = ROOT.parent / "docs/architecture.md"
PAIR = {"gate.backbone", "gate.request"}  # a request names its backbone's type, a backbone takes requests


@functools.cache
def modules() -> dict[str, Path]:
    linked = [f for name in ("techniques", "probes") for f in (ROOT / name).rglob("*.py")]
    files = {*ROOT.rglob("*.py"), *linked}
    names = {".".join(("gate", *f.relative_to(ROOT).with_suffix("").parts)): f for f in files}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


@functools.cache
def imports() -> dict[str, set[str]]:
    """Every import of ours by ours: at the top, inside functions, for types alone."""
    return {name: set(_imports(name)) - {name} for name in modules()}


def _imports(name: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name in modules())
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from (m for m in (inner if inner in modules() else node.module,) if m in modules())


def circles() -> list[set[str]]:
    """Modules that reach each other, as sets."""
    reached = {name: _reach(name) for name in modules()}
    found = {frozenset(m for m in reached[name] if name in reached[m]) for name in modules()}
    return [set(c) for c in found if c]


def _reach(name: str) -> set[str]:
    seen: set[str] = set()
    ahead = [*imports()[name]]
    while ahead:
        if (m := ahead.pop()) not in seen:
            seen.add(m)
            ahead += imports()[m]
    return seen


def room(module: str) -> str:
    """The package right below gate, or "contracts" for what lies flat."""
    first = module.split(".")[1] if "." in module else ""
    return first if (ROOT / first).is_dir() and first else "contracts"


def arrows() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, targets in imports().items():
        if name not in ("gate", "gate.__main__"):
            found.setdefault(room(name), set()).update(room(t) for t in targets if room(t) != room(name))
    return found


def drawn() -> dict[str, set[str]]:
    """The page's table: | `room` | what it holds | `may`, `import` | why nothing else |."""
    rows = re.findall(
        r"^\| `([a-z_]+)/?` \|[^|]*\|([^|]*)\|[^|]*\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    return {name: set(re.findall(r"`([a-z_]+)`", given)) for name, given in rows}


def test_nothing_imports_in_a_circle_but_the_one_pair_of_types() -> None:
    assert [c for c in circles() if c != PAIR] == []


@pytest.mark.parametrize("name", sorted({room(m) for m in modules()}))
def test_a_room_imports_what_its_line_says_and_no_more(name: str) -> None:
    assert drawn().get(name) == arrows().get(name, set())


def test_no_package_hides_a_public_function() -> None:
    assert not {p.name for p in ROOT.iterdir() if p.is_dir()} & (set(gate.__all__) - {"testing"})


def test_a_file_that_is_long_says_why() -> None:
    every = [*modules().values(), *(ROOT.parent / "tests").rglob("*.py")]
    files = [f for f in every if "\n# long: " not in f.read_text(encoding="utf-8")]
    assert [f.name for f in files if len(f.read_text(encoding="utf-8").splitlines()) > 300] == []
