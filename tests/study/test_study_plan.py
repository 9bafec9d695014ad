"""What a study computes, in which order, and where it keeps it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gate.errors import DamagedError, UsageError
from gate.study.folder import open_study, read_settings
from gate.study.plan import DOMAINS, MAIN, StudySettings, draws_of, groups_of, reads_captions
from gate.study.settings import settings_from


def test_what_tells_most_comes_first_and_captions_alone_remake_what_reads_them() -> None:
    groups = groups_of(StudySettings())
    first = groups[: len(DOMAINS)]
    assert [g.timestep for g in groups[: 2 * len(DOMAINS)]] == [MAIN[0]] * len(DOMAINS) + [MAIN[1]] * len(
        DOMAINS
    )
    assert {g.domain.name for g in groups[2 * len(DOMAINS) :]} == {"held-out", "sketches", "cluttered"}
    assert len(first[0].techniques) >= 21
    unnamed = next(g for g in first if g.domain.name == "unnamed")
    assert unnamed.techniques and all(reads_captions(name) for name in unnamed.techniques)
    alone = groups_of(StudySettings(domains=("unnamed",)))
    assert len(alone[0].techniques) == len(StudySettings().techniques)  # nobody else has its vanilla


def test_draws_of_one_size_share_no_image() -> None:
    settings = StudySettings()
    for n in settings.sizes:
        rows = [
            i for size, at in draws_of(settings) if size == n for i in range(*at.indices(settings.screening))
        ]
        assert len(rows) == len(set(rows)) == n * min(settings.draws, settings.screening // n)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="Did you mean"):
        StudySettings(domains=("held-ou",))
    with pytest.raises(UsageError, match="does not fit"):
        StudySettings(screening=100)
    with pytest.raises(UsageError, match="distinct numbers"):
        settings_from({"timesteps": "50,x"})
    made = settings_from({"timesteps": "50, 300", "techniques": "prompt,lora", "domains": "held-out"})
    assert made.timesteps == (50, 300) and made.techniques == ("vanilla", "prompt", "lora")


def test_a_folder_holds_one_study(tmp_path: Path) -> None:
    folder, settings = tmp_path / "s", StudySettings(domains=("held-out",))
    assert open_study(folder, settings) == settings == read_settings(folder) == open_study(folder, settings)
    with pytest.raises(UsageError, match="other domains"):
        open_study(folder, StudySettings())
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "holiday.txt").write_text("")
    with pytest.raises(UsageError, match="is no study"):
        open_study(tmp_path / "x", settings)
    with pytest.raises(UsageError, match="begin one"):
        read_settings(tmp_path)


def test_settings_that_were_edited_or_are_of_another_version_are_told(tmp_path: Path) -> None:
    open_study(tmp_path / "s", StudySettings())
    file = tmp_path / "s" / "settings.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "settings_version": 99}))
    with pytest.raises(DamagedError, match="another version"):
        read_settings(tmp_path / "s")
    file.write_text("{")
    with pytest.raises(DamagedError, match="damaged"):
        read_settings(tmp_path / "s")
