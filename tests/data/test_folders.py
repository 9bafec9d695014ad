"""Folders of images: what is found, what is refused, and what a limit keeps."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from image_files import by_source, fill, picture, sentence

from gate.data import load_images
from gate.data.order import interleave
from gate.errors import ConfigurationError, UsageError
from gate.sample import content_id

# Folders


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as missing:
        load_images(tmp_path / "nowhere", size=8)
    assert "no folder" in sentence(missing)
    (file,) = fill(tmp_path, 1)
    with pytest.raises(UsageError) as not_a_folder:
        load_images(file, size=8)
    assert "is a file" in sentence(not_a_folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError) as empty:
        load_images(tmp_path / "empty", size=8)
    assert "is empty" in sentence(empty)
    (tmp_path / "empty" / "a.heic").write_bytes(b"x")
    with pytest.raises(UsageError) as other:
        load_images(tmp_path / "empty", size=8)
    assert "1 files, none of them an image" in sentence(other)


def test_fewer_than_eight_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, 7)
    with pytest.raises(ConfigurationError) as error:
        load_images(tmp_path, size=8)
    assert "7 readable samples; at least 8" in sentence(error)
    picture(7).save(tmp_path / "one.png")
    picture(7).save(tmp_path / "same.png")
    assert len(load_images(tmp_path, size=8)) == 8
    (tmp_path / "one.png").unlink()
    (tmp_path / "same.png").write_bytes(b"")
    with pytest.raises(ConfigurationError) as one_bad:
        load_images(tmp_path, size=8)
    assert "same.png the file is empty" in sentence(one_bad)
    with pytest.raises(UsageError, match="at least 8"):
        load_images(tmp_path, size=8, limit=3)
    assert len(load_images(tmp_path, size=8, limit=3, minimum=2)) == 3


def test_recursive_hidden_files_aside_and_links_that_go_round(tmp_path: Path) -> None:
    fill(tmp_path / "a" / "b", 5)
    fill(tmp_path / "a", 5, start=50)
    fill(tmp_path / ".cache", 3)
    (tmp_path / "a" / "._img.png").write_bytes(b"a resource fork")
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    samples = load_images(tmp_path, size=8)
    assert len(samples) == 10 and not samples.skipped
    assert {"a/b/img00.png", "a/img50.png"} <= set(by_source(samples))
    assert samples.name == tmp_path.name and all(s.id == content_id(s.image) for s in samples)


def test_a_link_to_a_folder_of_images_is_followed(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", 8)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
    assert len(load_images(tmp_path / "set", size=8)) == 8


def test_second_copies_are_kept_once_and_listed(tmp_path: Path) -> None:
    fill(tmp_path, 9)
    picture(1).save(tmp_path / "x.png")
    picture(1).save(tmp_path / "y.bmp")
    samples = load_images(tmp_path, size=8)
    assert len(samples) == 10 and len({s.id for s in samples}) == 10
    ((source, reason),) = samples.skipped
    kept = ({"x.png", "y.bmp"} - {source}).pop()
    assert reason == f"is the same picture as {kept}" and kept in by_source(samples)


# The choice of a limit


def test_a_limit_is_a_draw_of_the_seed_and_a_prefix_of_a_larger_one(tmp_path: Path) -> None:
    fill(tmp_path, 30)
    order = [s.source for s in load_images(tmp_path, size=8, seed=3)]
    assert [s.source for s in load_images(tmp_path, size=8, seed=3, limit=12)] == order[:12]
    assert [s.source for s in load_images(tmp_path, size=8, seed=4, limit=30)] != order
    assert sorted(order) == [f"img{k:02d}.png" for k in range(30)]
    assert (
        load_images(tmp_path, size=8, limit=99).fingerprint() == load_images(tmp_path, size=8).fingerprint()
    )


def test_the_order_does_not_come_from_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "set" / "a", 10)
    fill(tmp_path / "set" / "b" / "c", 10, start=20)
    expected = load_images(tmp_path / "set", size=8, limit=9).fingerprint()
    walk = os.walk

    def backwards(*args: object, **kwargs: object):  # type: ignore[no-untyped-def]
        for parent, folders, files in walk(*args, **kwargs):  # type: ignore[call-overload]
            folders.reverse()
            yield parent, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    assert load_images(tmp_path / "set", size=8, limit=9).fingerprint() == expected
    (tmp_path / "set").rename(tmp_path / "moved")
    assert load_images(tmp_path / "moved", size=8, limit=9).fingerprint() == expected


def test_a_limit_takes_evenly_from_every_label_that_has_enough(tmp_path: Path) -> None:
    for number, (name, count) in enumerate({"cat": 20, "dog": 3, "elk": 9}.items()):
        fill(tmp_path / name, count, start=30 * number)
    samples = load_images(tmp_path, size=8, limit=13)
    assert samples.classes == ("cat", "dog", "elk") and samples.has_labels
    assert Counter(s.label for s in samples) == {0: 5, 1: 3, 2: 5}
    assert Counter(s.label for s in load_images(tmp_path, size=8, limit=9)) == {0: 3, 1: 3, 2: 3}


def test_a_bad_file_does_not_cost_its_label_a_place(tmp_path: Path) -> None:
    fill(tmp_path / "cat", 10)
    fill(tmp_path / "dog", 10, start=20)
    for path in sorted((tmp_path / "cat").iterdir())[:3]:
        path.write_bytes(b"")
    for seed in range(5):
        assert Counter(s.label for s in load_images(tmp_path, size=8, limit=12, seed=seed)) == {0: 6, 1: 6}


def test_interleave_gives_one_of_each_per_round_until_all_are_exhausted() -> None:
    streams = {"a": [1, 2, 3], "b": [10], "c": [100, 200]}
    drawn = list(interleave({k: iter(v) for k, v in streams.items()}, seed=0))
    assert set(drawn[:3]) == {1, 10, 100} and set(drawn[3:5]) == {2, 200} and drawn[5:] == [3]
    many = [list(interleave({k: iter([k]) for k in "abcd"}, seed)) for seed in range(30)]
    assert len({tuple(order) for order in many}) > 10, "the order within a round must vary"
