"""Whose a name is, whatever the order; who is imported for it; what strangers break; what a renamed one is called."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest

import gate.plugins
import gate.registry
from gate.cli.doctor import _plugins
from gate.cli.list import _techniques
from gate.errors import PluginError
from gate.plugins import plugins, refused
from gate.registry import (
    create_technique,
    everything,
    list_techniques,
    select_plugins,
    select_techniques,
    technique_names,
)


class Stranger(EntryPoint):
    """An entry point of a distribution, whose modules are files of this test. `touched` says which were imported."""

    touched: ClassVar[list[str]] = []

    def load(self) -> Any:
        self.touched.append(self.value)
        return super().load()


@dataclass
class Distribution:
    name: str | None


Add = Callable[..., None]


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Add]:
    """add(distribution, name, source, kind): a stranger's module whose class is called `It`, behind an entry point."""
    strangers: list[EntryPoint] = []
    real = gate.plugins.entry_points

    def entry_points(group: str) -> list[EntryPoint]:
        return [*(p for p in strangers if p.group == group), *real(group=group)]  # strangers first: no matter

    def install(
        distribution: str | None, name: str, source: str = "", kind: str = "technique", target: str = ""
    ) -> None:
        module = f"strange_{tmp_path.name.replace('-', '_')}_{len(strangers)}"
        (tmp_path / f"{module}.py").write_text(HEAD.format(name=name) + (source or "    pass") + "\n")
        point = Stranger(name, target or f"{module}:It", f"gate.{kind}s")
        vars(point)["dist"] = Distribution(distribution)
        strangers.insert(0, point)
        gate.plugins.forget()

    monkeypatch.setattr(gate.plugins, "entry_points", entry_points)
    monkeypatch.syspath_prepend(tmp_path)
    Stranger.touched.clear()
    gate.plugins.forget()
    yield install
    gate.plugins.forget()
    gate.registry._say_renamed.cache_clear()


HEAD = """from dataclasses import dataclass
from gate import Technique
@dataclass(kw_only=True)
class It(Technique):
    name = {name!r}
    strength: float = 1.0
"""


def late() -> dict[str, str]:
    return {p.name: p.error for p in refused("technique")}


def broken() -> dict[str, str]:
    return {p.name: p.error for p in plugins("technique").values() if p.error}


@pytest.mark.parametrize("name", ["prompt", "guidance-cfg"])
@pytest.mark.parametrize("distribution", ["aaa", "gate-other", "zzz"])
def test_a_stranger_never_replaces_a_name_or_variant_of_ours(add: Add, distribution: str, name: str) -> None:
    ours = type(create_technique(name))
    add(distribution, name)
    assert type(create_technique(name)) is ours
    assert technique_names()[name].cls is ours
    assert list(late()) == [name] and not broken()
    assert f"of {distribution}" in late()[name] and f"{ours.__name__} of gate-screen" in late()[name]
    assert not Stranger.touched  # what came too late is not imported


def test_a_stranger_s_variant_never_replaces_a_name_of_ours_and_the_rest_of_it_works(add: Add) -> None:
    add("aaa", "mine", "    variants = {'freeu': {'strength': 2.0}, 'mine-strong': {'strength': 2.0}}")
    assert type(create_technique("freeu")).__name__ == "FreeU"
    assert create_technique("mine-strong").settings == {"strength": 2.0}
    assert "a variant of strange" in late()["freeu"] and "FreeU of gate-screen" in late()["freeu"]
    assert list(technique_names()).count("freeu") == 1


def test_of_two_strangers_the_first_distribution_holds_the_name(add: Add) -> None:
    add("zzz", "mine", "    summary = 'second'")
    add("aaa", "mine", "    summary = 'first'")
    assert create_technique("mine").summary == "first"
    assert "of aaa" in late()["mine"] and "of zzz" in late()["mine"]


def test_a_stranger_s_own_name_comes_before_another_s_variant(add: Add) -> None:
    add("aaa", "early", "    variants = {'mine': {}}")
    add("zzz", "mine", "    summary = 'own'")
    assert create_technique("mine").summary == "own"  # looked up alone
    assert technique_names()["mine"].cls.summary == "own"  # and among all
    assert "a variant of" in late()["mine"]


def test_a_look_up_imports_nobody_else(add: Add) -> None:
    add("aaa", "slow", "import time; time.sleep(60)")
    add("bbb", "exits", "raise SystemExit(3)")
    add("ccc", "mine", "    variants = {'mine-strong': {'strength': 2.0}}")
    for name in ("prompt", "guidance-cfg", "prompt+freeu[b1=1.2]"):
        assert select_techniques(name) == [name]
    assert not Stranger.touched
    create_technique("mine")
    assert len(Stranger.touched) == 1


def test_a_look_up_of_probes_and_metrics_imports_nobody_else(add: Add) -> None:
    add("aaa", "slow", "import time; time.sleep(60)", kind="metric")
    assert [m.name for m in select_plugins("metric", ["cka"])] == ["cka"]
    assert not Stranger.touched


def test_a_stranger_s_variant_is_found_among_all(add: Add) -> None:
    add("aaa", "exits", "raise SystemExit(3)")
    add("bbb", "mine", "    variants = {'mine-strong': {'strength': 2.0}}")
    assert create_technique("mine-strong").name == "mine-strong"
    assert broken() == {"exits": "SystemExit: 3"}


@pytest.mark.parametrize(
    ("name", "source", "why"),
    [
        ("mine", "raise SystemExit('no licence')", "SystemExit: no licence"),
        ("mine", "raise BaseException", "BaseException"),
        ("mine", "raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("mine", "import sys; sys.exit(0)", "SystemExit: 0"),
        ("mine", "    summary = None", "summary must be one line of text, got None"),
        ("mine", "    leak = True", "leak must be a text"),
        ("mine", "    needs = 7", "needs must be a set of names"),
        ("mine", "    families = 'unet'", "families must be a set of names"),
        ("mine", "    neutral = 7", "neutral must map settings"),
        ("mine", "    variants = 7", "variants must map names to settings"),
        ("mine", "    variants = {'mine-strong': 7}", "variants must map names to settings"),
        ("mine", "    variants = {7: {}}", "the name 7 is no text"),
        ("mine", "    variants = {'a+b': {}}", "'a+b' does not read on the command line"),
        ("mine", "    variants = {'vanilla': {}}", "'vanilla' is reserved"),
        ("mine", "    aliases = 7", "aliases must map"),
        ("mine", "    aliases = {'old': 'nobody'}", "lead to 'nobody'"),
        ("mine", "    compositions = 7", "compositions must be"),
        ("mine", "    compositions = ('mine+prompt[text=',)", "stays open"),
        ("mine", "    name = 7", "the name 7 is no text"),
        ("mine", "    name = 'other'", "calls itself 'other'"),
        ("mine", "It = 7", "is no class"),
        ("mine", "class It: name = 'mine'", "does not derive from gate.Technique"),
        ("vanilla", "", "'vanilla' is reserved"),
        ("all", "", "'all' is reserved"),
        ("a,b", "", "'a,b' does not read"),
        ("a+b", "", "'a+b' does not read"),
        ("x-[bold red]", "", "'x-[bold red]' does not read"),
        ("../x", "", "'../x' does not read"),
    ],
)
def test_what_is_broken_is_listed_in_a_sentence(add: Add, name: str, source: str, why: str) -> None:
    add("aaa", name, source)
    assert list(broken()) == [name] and why in broken()[name]
    assert "\n" not in broken()[name]
    assert "prompt" in technique_names() and "prompt" in everything()
    if name == "mine":
        with pytest.raises(PluginError, match="'mine' of aaa is broken"):
            create_technique(name)


# renamed


ALIASES = """    variants = {'mine-strong': {'strength': 2.0}}
    aliases = {'old': 'mine', 'old-strong': 'mine-strong', 'freeu': 'mine'}
"""


def test_an_old_name_works_and_says_the_new_one_once(add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    add("aaa", "mine", ALIASES)
    made = create_technique("old[strength=3]")
    assert made.name == "mine[strength=3]" and made.settings == {"strength": 3}
    said = capsys.readouterr().err
    assert "'old' is called 'mine' now" in said and said.count("\n") == 1
    assert create_technique("old-strong").settings == {"strength": 2.0}
    assert create_technique("prompt+old").name == "prompt+mine"
    assert select_techniques("old,mine,mine-strong,!old-strong") == ["mine"]
    assert "'old' is" not in capsys.readouterr().err


def test_old_names_are_neither_listed_nor_taken_from_others(add: Add) -> None:
    add("aaa", "mine", ALIASES)
    assert {"mine", "mine-strong"} <= set(list_techniques())
    assert not {"old", "old-strong"} & {*list_techniques(), *everything()}
    assert type(create_technique("freeu")).__name__ == "FreeU"
    assert "an old name of" in late()["freeu"]


def test_the_doctor_names_who_came_too_late(add: Add) -> None:
    add("gate-other", "prompt")
    found = {c.name: c for c in _plugins()}
    assert found["technique prompt"].state == "broken" and "gate-screen" in found["technique prompt"].detail
    assert found["technique prompt"].todo.endswith("pip uninstall gate-other")


def test_facts_that_raise_are_a_row_of_the_listing(add: Add) -> None:
    add("aaa", "mine", "    needs = property(lambda self: 1 / 0)")
    rows = {r["name"]: r for r in _techniques("tiny")[0]}
    assert "ZeroDivisionError" in rows["mine"]["error"] and "error" not in rows["prompt"]


def test_a_stranger_that_names_our_own_class_is_late_too(add: Add) -> None:
    add("aaa", "prompt", target="gate.techniques.prompt:Prompt")
    assert plugins("technique")["prompt"].distribution == "gate-screen"
    assert late()["prompt"].endswith("Prompt of aaa too; rename one or uninstall one")


def test_a_distribution_without_a_name_is_unknown(add: Add) -> None:
    add(None, "mine")
    assert plugins("technique")["mine"].distribution == "unknown" and not broken()


def test_a_real_ctrl_c_while_a_plug_in_is_imported_is_the_user_s(add: Add) -> None:
    add("aaa", "mine", "import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        plugins("technique")
    assert signal.getsignal(signal.SIGINT) is before


def test_inside_a_composition_our_variant_stays_ours(add: Add) -> None:
    add("aaa", "guidance-cfg", "    summary = 'A stranger.'")
    made: Any = create_technique("prompt+guidance-cfg")
    assert [type(part).__name__ for part in made.parts] == ["Prompt", "Guidance"]
