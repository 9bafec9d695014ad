"""A folder streamed: the samples of a screening row by row, what cannot be read beside them, memory that stays flat."""

from __future__ import annotations

import os
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import fill, picture, sentence

from gate.data import load_images
from gate.data.listing import list_folder
from gate.errors import ConfigurationError, UsageError
from gate.extraction.images import ImageStream, open_images, parted
from gate.sample import Sample
from tests.threads import one_thread

__all__ = ["one_thread"]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Nine readable pictures in formats and folders of all kinds, one of them twice, and four that are not readable."""
    folder = tmp_path / "mixed"
    fill(folder, 5)
    fill(folder / "deep" / "er", 3, suffix=".jpg")
    picture(77, 33, 90).convert("RGBA").save(folder / "tall.webp")
    (folder / "deep" / "same.png").write_bytes((folder / "img00.png").read_bytes())
    whole = (folder / "img01.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no picture")
    picture(5, 7, 40).save(folder / "narrow.png")
    (folder / "empty.png").touch()
    (folder / "phone.HEIC").write_bytes(b"x")
    (folder / "img02.txt").write_text("a  cat\n asleep")
    (folder / "deep" / "notes.md").write_text("nothing")
    return folder


def test_samples_are_those_of_a_screening(mixed: Path) -> None:
    # load_images refuses folders of which a fifth is broken, and skips copies: here it sees the sound ones alone
    broken = ("cut.png", "text.jpg", "narrow.png", "empty.png")
    stream = open_images(mixed, size=16)
    samples, skipped = stream.read(slice(None))
    assert sorted(key for key, _ in skipped) == sorted(broken)
    for name in broken:
        (mixed / name).unlink()
    (mixed / "deep" / "same.png").unlink()
    screened = {s.source: s for s in load_images(mixed, size=16)}
    streamed = {s.source: s for s in samples}
    assert set(streamed) == {*screened, "deep/same.png"} and len(screened) == 9
    for key, theirs in screened.items():
        ours = streamed[key]
        assert ours.id == theirs.id and np.array_equal(ours.image, theirs.image)
        assert ours.caption == theirs.caption and ours.label is None and ours.mask is None
    assert streamed["img02.png"].caption == "a cat asleep"
    assert streamed["deep/same.png"].id == streamed["img00.png"].id, "a copy keeps its row"


def test_noise_and_features_are_those_of_a_screening(tmp_path: Path, tiny: Any, one_thread: None) -> None:
    fill(tmp_path, 8)
    screened = load_images(tmp_path, size=64)
    streamed, _ = open_images(tmp_path, size=64).read([5])
    (theirs,) = (s for s in screened if s.source == streamed[0].source == "img05.png")
    ours, other = (tiny.batch([s]).request(50, 1) for s in (streamed[0], theirs))
    assert torch.equal(ours.eps, other.eps) and torch.equal(ours.x_t, other.x_t)
    ours, other = (tiny.extract([s], layers="up1", seed=1)["up1"] for s in (streamed[0], theirs))
    assert torch.equal(ours, other)


def test_rows_are_those_asked_for_in_their_order(mixed: Path) -> None:
    stream = open_images(mixed, size=16)
    assert list(stream.keys) == sorted(stream.keys) and len(stream) == len(stream.keys) == 14
    samples, skipped = stream.read([7, 0, 2])
    assert (
        [s.source for s in samples] == [stream.keys[7], stream.keys[2]] == ["img01.png", "deep/er/img01.jpg"]
    )
    assert [key for key, _ in skipped] == [stream.keys[0]] == ["cut.png"]
    one, none = stream.read(slice(1, 2))
    assert [s.source for s in one] == [stream.keys[1]] and none == []


def test_reasons_say_what_is_wrong(mixed: Path) -> None:
    stream = open_images(mixed, size=16)
    reasons = dict(stream.read(slice(None))[1])
    assert reasons["empty.png"] == "the file is empty" and "7 x 40" in reasons["narrow.png"]
    assert reasons["text.jpg"].startswith("is not an image") and "cannot be decoded" in reasons["cut.png"]
    assert [key for key, _ in stream.left_out] == ["phone.HEIC"] and "convert it" in stream.left_out[0][1]
    os.unlink(mixed / "img03.png")  # between listing and reading
    _, skipped = stream.read([stream.keys.index("img03.png")])
    assert skipped == [("img03.png", "is not a regular file")]


def test_a_bomb_is_skipped(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = open_images(mixed, size=16)
    monkeypatch.setattr("gate.data.images.MAX_PIXELS", 1000)
    _, skipped = stream.read([stream.keys.index("tall.webp")])
    assert skipped[0][0] == "tall.webp" and "megapixels" in skipped[0][1]


def test_captions_from_a_table_win_over_files_and_a_broken_file_skips_its_image(mixed: Path) -> None:
    (mixed / "captions.csv").write_text("file,caption\nimg02.png,\nimg01.png,two dogs\n")
    (mixed / "img00.txt").write_bytes(b"\xff\xfe caf\xe9")
    stream = open_images(mixed, size=16)
    samples, skipped = stream.read(slice(None))
    captions = {s.source: s.caption for s in samples}
    assert captions["img01.png"] == "two dogs" and captions["img02.png"] is None  # blank, but it is named
    assert "img00.txt" in dict(skipped)["img00.png"] and not stream.has_captions
    named = [f"{key},{'' if key == 'img02.png' else key}" for key in stream.keys]
    (mixed / "captions.csv").write_text("\n".join(["file,caption", *named]))
    assert not open_images(mixed, size=16).has_captions
    (mixed / "captions.csv").write_text(
        "\n".join(["file,caption", *named]).replace("img02.png,", "img02.png,two")
    )
    assert open_images(mixed, size=16).has_captions
    (mixed.parent / "mine.csv").write_text(
        "file,caption\n" + "".join(f"{key},it is {key}\n" for key in stream.keys)
    )
    given = open_images(mixed, size=16, captions=mixed.parent / "mine.csv")
    assert (
        given.has_captions and given.read([given.keys.index("img02.png")])[0][0].caption == "it is img02.png"
    )


def test_masks_inside_the_folder_are_no_images(mixed: Path) -> None:
    fill(mixed / "masks", 2)
    inside = {"masks/img00.png", "masks/img01.png"}
    assert inside < set(open_images(mixed, size=16).keys)
    assert not inside & set(open_images(mixed, size=16, masks=mixed / "masks").keys)


def test_nothing_to_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        open_images(tmp_path / "nowhere", size=16)
    with pytest.raises(UsageError, match="at least 1 pixel"):
        open_images(tmp_path, size=0)
    (tmp_path / "a.txt").touch()
    with pytest.raises(UsageError, match="none of them an image"):
        open_images(tmp_path, size=16)
    (tmp_path / "b.png").write_bytes(b"junk")
    (tmp_path / "a.png").touch()
    with pytest.raises(ConfigurationError) as error:
        open_images(tmp_path, size=16)
    assert "None of the 2 images" in sentence(error) and "a.png the file is empty" in str(error.value)
    picture(1).save(tmp_path / "z.png")
    assert len(open_images(tmp_path, size=16)) == 3


@pytest.mark.parametrize("ahead", [1, 2, 14, 50])
def test_each_is_the_rows_read_one_after_the_other(mixed: Path, ahead: int) -> None:
    stream = open_images(mixed, size=16)
    rows = [*range(len(stream)), 2, 0]
    samples, skipped = parted(stream.each(iter(rows), threads=3, ahead=ahead))
    theirs, gone = stream.read(rows)
    assert [(s.source, s.id) for s in samples] == [(s.source, s.id) for s in theirs] and skipped == gone
    assert len(samples) > 5 and skipped and list(stream.each([])) == []


def test_threads_run_ahead_but_not_further_than_they_may(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = open_images(mixed, size=16)
    begun: list[tuple[int, str]] = []
    plain = ImageStream.sample

    def noted(self: ImageStream, row: int) -> Any:
        begun.append((row, threading.current_thread().name))
        return plain(self, row)

    monkeypatch.setattr(ImageStream, "sample", noted)
    each: Iterator[Any] = stream.each(range(len(stream)), threads=2, ahead=4)
    next(each)
    until = time.monotonic() + 60  # a busy machine may be slow
    while len(begun) < 4 and time.monotonic() < until:  # the model computes
        time.sleep(0.005)
    time.sleep(0.05)
    assert sorted(row for row, _ in begun) == [0, 1, 2, 3]
    assert all(name.startswith("gate-images") for _, name in begun)
    each.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("gate-images")]


def test_what_breaks_a_decoder_thread_reaches_the_reader(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = open_images(mixed, size=16)
    monkeypatch.setattr(ImageStream, "sample", lambda self, row: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(stream.each(range(4)))


def test_what_was_read_is_let_go(tmp_path: Path) -> None:
    """Forty pictures of 300 KB each, two ahead: never more than a few are there."""
    fill(tmp_path, 40)
    stream = open_images(tmp_path, size=320)
    one = 320 * 320 * 3
    tracemalloc.start()
    try:
        for found in stream.each(range(40), threads=1, ahead=2):
            assert isinstance(found, Sample)
            del found
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert one < peak < 10 * one


def test_a_hundred_thousand_names_are_listed_unopened_and_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"picture-{k:06d}.jpg" for k in range(100_000)]
    picture(1).save(tmp_path / names[0], format="JPEG")
    monkeypatch.setattr(os, "walk", lambda *_, **__: iter([(str(tmp_path), [], list(names))]))
    stream = open_images(tmp_path, size=16)  # of the others there is nothing to open
    assert stream.keys == tuple(names) and isinstance(stream.sample(0), Sample)
    tracemalloc.start()
    try:
        kept = list_folder(tmp_path)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(kept.images) == 100_000 and held < 250 * 100_000  # bytes a name; a Path would take twice that
