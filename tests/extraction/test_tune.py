"""Timing chooses among settings with the same bits; for `fast` a margin guards those with others."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
from test_engine import work_of

from gate.backbone import Backbone
from gate.extraction import tune
from gate.extraction.hardware import Processor
from gate.extraction.plan import Precision, Setting
from gate.extraction.tune import Choice, choose
from gate.sample import SampleSet

USUAL = Setting(8, processes=2, threads=1)
Known = dict[Setting, tuple[float, str]]


def chosen(
    tiny: Backbone,
    scenes: SampleSet,
    monkeypatch: pytest.MonkeyPatch,
    known: Known,
    *,
    precision: Precision = "exact",
    images: int = 10**7,
    compile: bool = False,
    memory: Path | None = None,
) -> tuple[Choice, list[Setting]]:
    """What is chosen where a setting takes what `known` says: (images/s, bits)."""
    asked: list[Setting] = []

    def timed(work: object, samples: object, setting: Setting) -> tuple[float, dict[str, str]]:
        asked.append(setting)
        time.sleep(0.01)
        if setting not in known:
            raise RuntimeError("not here\nat all")
        return known[setting][0], {"image": known[setting][1]}

    monkeypatch.setattr(tune, "_timed", timed)
    monkeypatch.setattr(tune, "processor", lambda: Processor("p", 2, ("avx2",), "/usr/bin/g++"))
    work = work_of(tiny, "vanilla")
    choice = choose(work, scenes, USUAL, images=images, precision=precision, compile=compile, memory=memory)
    return choice, asked


def test_the_fastest_with_the_same_bits_wins(
    tiny: Backbone, scenes: SampleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = USUAL.with_(processes=1, threads=2)
    known: Known = {
        USUAL: (10, "a"),
        other: (12, "a"),
        other.with_(batch=16): (13, "a"),
        other.with_(batch=4): (9, "a"),
    }
    choice, asked = chosen(tiny, scenes, monkeypatch, known)
    assert choice.setting == other.with_(batch=16)
    assert asked == [USUAL, other, other.with_(batch=4), other.with_(batch=16)]
    assert not any(setting.channels_last or setting.compiled for setting in asked)


def test_other_bits_are_never_exact(
    tiny: Backbone, scenes: SampleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = USUAL.with_(processes=1, threads=2)
    choice, _ = chosen(tiny, scenes, monkeypatch, {USUAL: (10, "a"), other: (99, "b")})
    assert choice.setting == USUAL
    assert [t.note for t in choice.trials][1:] == [
        "other bits: not for exact",
        *["does not run: not here"] * 2,
    ]


@pytest.mark.parametrize(("rate", "won"), [(10.5, False), (11.5, True)])
def test_fast_takes_another_layout_by_a_margin(
    rate: float, won: bool, tiny: Backbone, scenes: SampleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = USUAL.with_(channels_last=True)
    choice, asked = chosen(
        tiny, scenes, monkeypatch, {USUAL: (10, "a"), other: (rate, "b")}, precision="fast"
    )
    assert (choice.setting == other) is won and not any(s.compiled for s in asked)


def test_fast_never_takes_other_bits_for_other_threads(
    tiny: Backbone, scenes: SampleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = USUAL.with_(processes=1, threads=2)
    known: Known = {USUAL: (10, "a"), other: (99, "b"), USUAL.with_(batch=16): (99, "b")}
    assert chosen(tiny, scenes, monkeypatch, known, precision="fast")[0].setting == USUAL


def test_compiling_is_tried_where_it_was_asked_for_and_pays(
    tiny: Backbone, scenes: SampleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = USUAL.with_(processes=1, threads=2, compiled=True)
    known: Known = {USUAL: (10, "a"), compiled: (20, "b")}
    choice, _ = chosen(tiny, scenes, monkeypatch, known, precision="fast", compile=True)
    assert choice.setting == compiled
    _, asked = chosen(tiny, scenes, monkeypatch, known, precision="fast", compile=True, images=3000)
    assert compiled not in asked


def test_few_images_are_not_worth_timing_and_choices_are_remembered(
    tiny: Backbone, scenes: SampleSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = USUAL.with_(processes=1, threads=2)
    known: Known = {USUAL: (10, "a"), other: (12, "a")}
    choice, asked = chosen(tiny, scenes, monkeypatch, known, images=900, memory=tmp_path)
    assert choice.setting == USUAL and asked == [] and "900 images are too few" in choice.reason
    choice, asked = chosen(tiny, scenes, monkeypatch, {**known, USUAL: (1e6, "a")}, images=1000)
    assert choice.setting == USUAL and asked == [USUAL] and "too few" in choice.reason
    assert chosen(tiny, scenes, monkeypatch, known, memory=tmp_path)[0].setting == other
    choice, asked = chosen(tiny, scenes, monkeypatch, known, memory=tmp_path)
    assert choice.setting == other and asked == [] and "when it was timed" in choice.reason
    (tmp_path / tune.FILE).write_text("{", encoding="utf-8")
    assert chosen(tiny, scenes, monkeypatch, known, memory=tmp_path)[0].setting == other


def test_timing_for_real_gives_the_same_bits_to_every_setting_it_takes(
    tiny: Backbone, scenes: SampleSet
) -> None:
    work = work_of(tiny, "vanilla", layers=("up0",))
    rate, digests = tune._timed(work, scenes, Setting(4))
    again, same = tune._timed(work, scenes, Setting(4, processes=2))
    assert rate > 0 and again > 0 and len(same) == 8 and same == digests
    _, other = tune._timed(dataclasses.replace(work, seed=1), scenes, Setting(4))
    assert set(other) == set(digests) and not set(other.values()) & set(digests.values())
