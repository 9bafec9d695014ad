"""Names: wildcards, exclusion, settings, compositions, suggestions; whose they are, and what strangers break."""

from __future__ import annotations

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
from gate.composition import Composition
from gate.errors import PluginError, UsageError
from gate.registry import (
    create_technique,
    everything,
    list_techniques,
    load_class,
    plugins,
    refused,
    select_plugins,
    select_techniques,
    technique_names,
)
from gate.screening.config import ScreenConfig


def test_all_own_plugins_load() -> None:
    for kind in ("technique", "probe", "metric"):
        broken = {p.name: p.error for p in plugins(kind).values() if p.error}  # type: ignore[arg-type]
        assert not broken


def test_all_has_at_least_fourteen_entries_and_all_can_be_made() -> None:
    names = everything()
    assert len(names) >= 14 and len(set(names)) == len(names)
    for name in names:
        assert create_technique(name).name == name


def test_wildcards_and_exclusion() -> None:
    guided = list_techniques("guidance-*")
    assert "guidance-cfg" in guided and all(n.startswith("guidance-") for n in guided)
    assert "freeu" not in select_techniques("all,!freeu")
    assert select_techniques("!freeu") == select_techniques("all,!freeu")
    assert select_techniques(["freeu", "prompt"]) == ["freeu", "prompt"]


def test_an_unknown_name_suggests_the_right_one() -> None:
    with pytest.raises(UsageError, match="Did you mean 'freeu'"):
        select_techniques("frreu")
    with pytest.raises(UsageError, match="Unknown technique"):
        select_techniques("zzz*")
    with pytest.raises(UsageError, match="Unknown metric 'cosin'. Did you mean 'cosine'"):
        select_plugins("metric", ["cosin"])


def test_settings_in_brackets_and_compositions() -> None:
    technique = create_technique("noise-ensemble[members=3]")
    assert technique.settings["members"] == 3 and technique.cost.per_pass == 3
    both = create_technique("prompt+noise-ensemble[members=3]")
    assert isinstance(both, Composition) and both.cost.per_pass == 3
    assert "captions" in both.needs
    with pytest.raises(UsageError, match="Did you mean 'members'"):
        create_technique("noise-ensemble[member=3]")


def test_two_that_replace_the_latent_do_not_compose() -> None:
    with pytest.raises(UsageError, match="both replace the latent"):
        create_technique("ddim-inversion+noise-ensemble")
    with pytest.raises(UsageError, match="named twice"):
        create_technique("prompt+prompt")


def test_a_class_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom gate import Technique\n"
        "@dataclass(kw_only=True)\nclass Mine(Technique):\n    name = 'mine'\n"
    )
    assert load_class(f"{file}::Mine").name == "mine"
    with pytest.raises(PluginError, match="no attribute 'Yours'"):
        load_class(f"{file}::Yours")
    with pytest.raises(UsageError, match=r"path/to/file\.py::ClassName"):
        load_class(str(file))


# strangers


class Stranger(EntryPoint):
    """An entry point of a distribution, whose modules are files of this test. `touched` says which were imported."""

    touched: ClassVar[list[str]] = []

    def load(self) -> Any:
        self.touched.append(self.value)
        return super().load()


@dataclass
class Distribution:
    name: str


Add = Callable[..., None]


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Add]:
    """add(distribution, name, source, kind): a stranger's module whose class is called `It`, behind an entry point."""
    strangers: list[EntryPoint] = []
    real = gate.plugins.entry_points

    def entry_points(group: str) -> list[EntryPoint]:
        return [
            *(p for p in strangers if p.group == group),
            *real(group=group),
        ]  # strangers first: order is nothing

    def install(distribution: str, name: str, source: str = "", kind: str = "technique") -> None:
        module = f"strange_{tmp_path.name.replace('-', '_')}_{len(strangers)}"
        (tmp_path / f"{module}.py").write_text(HEAD.format(name=name) + (source or "    pass") + "\n")
        point = Stranger(name, f"{module}:It", f"gate.{kind}s")
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


def test_a_setting_may_hold_what_separates_names() -> None:
    names = select_techniques("prompt[quality='a, b+c? :)'],lora")
    assert names == ["prompt[quality='a, b+c? :)']", "lora"]
    assert create_technique(names[0]).settings["quality"] == "a, b+c? :)"
    assert ScreenConfig(techniques=",".join(names)).techniques == tuple(names)  # type: ignore[arg-type]


def test_the_doctor_names_who_came_too_late(add: Add) -> None:
    add("gate-other", "prompt")
    found = {c.name: c for c in _plugins()}
    assert found["technique prompt"].state == "broken" and "gate-screen" in found["technique prompt"].detail
    assert found["technique prompt"].todo.endswith("pip uninstall gate-other")


def test_facts_that_raise_are_a_row_of_the_listing(add: Add) -> None:
    add("aaa", "mine", "    needs = 7")
    rows = {r["name"]: r for r in _techniques("tiny")[0]}
    assert "TypeError" in rows["mine"]["error"] and "error" not in rows["prompt"]
