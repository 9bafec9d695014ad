"""A caption, a table or a list of classes that is a pipe, a device, endless or huge is refused before it is read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from gate.cli import app
from gate.data import load_images
from gate.data.sidecars import CAPTION_BYTES, read_text
from gate.errors import ConfigurationError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    (tmp_path / "photos_masks").mkdir()
    for i in range(8):
        Image.new("RGB", (32, 32), (i * 30, 90, 200)).save(folder / f"{i}.png")
        Image.new("L", (32, 32), i % 2 + 1).save(tmp_path / "photos_masks" / f"{i}.png")
    return folder


def put(place: Path, what: str) -> None:
    if what == "pipe":
        os.mkfifo(place)
    elif what == "huge":
        with place.open("wb") as stream:
            stream.truncate(300 << 20)
    else:
        place.symlink_to(what)


WHATS = {
    "pipe": "is a pipe or a device",
    "/dev/zero": "is a pipe or a device",
    "/dev/tty": "(is a pipe or a device|cannot be read)",
    "huge": "has more than [0-9,]+ bytes",
}
PLACES = ("photos/0.txt", "photos/captions.csv", "photos/labels.csv", "photos_masks/classes.txt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes among files here")
@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("place", PLACES)
def test_what_has_no_end_is_refused(photos: Path, place: str, what: str) -> None:
    put(photos.parent / place, what)
    with pytest.raises(ConfigurationError, match=WHATS[what]) as refused:
        load_images(photos, size=32)
    assert Path(place).name in str(refused.value) and len(str(refused.value).splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes among files here")
def test_the_command_refuses_a_pipe_in_a_sentence_and_leaves_no_run(photos: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "photos_masks")
    os.mkfifo(photos / "0.txt")
    run = tmp_path / "run"
    done = CliRunner().invoke(app, ["screen", "--images", str(photos), "--output", str(run), "--quiet"])
    assert done.exit_code == 3 and done.stdout == "" and not run.exists()
    assert done.stderr == "gate: The caption file 0.txt is a pipe or a device; save it as a file first.\n"


def test_a_caption_of_the_largest_size_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"x" * CAPTION_BYTES)
    assert len(read_text(file, "it", CAPTION_BYTES)) == CAPTION_BYTES
    file.write_bytes(b"x" * (CAPTION_BYTES + 1))
    with pytest.raises(ConfigurationError, match="it has more than 1,048,576 bytes"):
        read_text(file, "it", CAPTION_BYTES)
