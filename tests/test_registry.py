"""Names: wildcards, exclusion, settings in brackets, compositions, suggestions."""

from __future__ import annotations

from pathlib import Path

import pytest

from gate.composition import Composition
from gate.errors import PluginError, UsageError
from gate.registry import (
    create_technique,
    everything,
    list_techniques,
    plugins,
    select_plugins,
    select_techniques,
)
from gate.screening.config import ScreenConfig
from gate.testing import load_class


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


def test_a_setting_may_hold_what_separates_names() -> None:
    names = select_techniques("prompt[quality='a, b+c? :)'],lora")
    assert names == ["prompt[quality='a, b+c? :)']", "lora"]
    assert create_technique(names[0]).settings["quality"] == "a, b+c? :)"
    assert ScreenConfig(techniques=",".join(names)).techniques == tuple(names)  # type: ignore[arg-type]


def test_what_is_too_dear_is_measured_when_it_is_named_and_says_why() -> None:
    probes, metrics = ({p.name for p in select_plugins(kind, ["all"])} for kind in ("probe", "metric"))  # type: ignore[arg-type]
    assert "two-sample" in probes and "zero-shot" not in probes
    assert "lipschitz" in metrics and "istd" not in metrics
    for kind, name in (("probe", "zero-shot"), ("metric", "istd")):
        [named] = select_plugins(kind, [name])  # type: ignore[arg-type]
        assert "name it to measure it" in named.unlisted and not named.standard
