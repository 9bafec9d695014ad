"""Files and folders that a screening leaves out are told, with their reasons."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import fill, picture
from PIL import Image
from typer.testing import CliRunner

from gate.cli import app
from gate.runs.directory import open_run

cli = CliRunner()
FAST = ["--techniques", "freeu", "--seeds", "1", "--timesteps", "50", "--image-samples", "0"]
FAST += ["--resamples", "200", "--workers", "1"]


def test_what_is_left_out_is_named_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreadable subfolder, a photo of a telephone, a dot, and images without their label and mask."""
    here = tmp_path
    monkeypatch.chdir(here)
    fill(here / "photos", 12)
    fill(here / "photos" / "locked", 3, start=40)
    (here / "photos" / "phone.heic").write_bytes(b"x")
    picture(7, 1, 1).save(here / "photos" / "dot.png")
    rows = [f"img{k:02d}.png,{'ab'[k % 2]}" for k in range(10)] + ["dot.png,a"]
    (here / "photos" / "labels.csv").write_text("\n".join(["file,label", *rows]))
    (here / "photos_masks").mkdir()
    for k in range(9):
        mask = np.repeat([[0], [1]], 8, axis=0).repeat(20, axis=1).astype(np.uint8)
        Image.fromarray(mask).save(here / "photos_masks" / f"img{k:02d}.png")
    Image.fromarray(np.ones((1, 1), np.uint8)).save(here / "photos_masks" / "dot.png")
    real = os.scandir

    def scandir(path: Any = ".") -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    result = cli.invoke(
        app,
        ["screen", *FAST, "--images", "photos", "--samples", "64", "--probes", "linear", "--output", "run"],
    )
    assert result.exit_code == 0, result.output
    told = " ".join(result.stderr.split())
    assert "6 of 15 files are left out" in told and "2 (img10.png) has no label" in told
    assert "64 images were asked for, and photos has 9" in told
    skipped = dict(open_run(here / "run").results.data.skipped)
    assert skipped["locked/"] == "cannot be opened (Permission denied)"
    assert skipped["phone.heic"] == "is .heic, which is not read; convert it to PNG or JPEG"
    assert skipped["dot.png"] == "is 1 x 1; a side has 8 pixels or more"
    flat = " ".join(result.stdout.split())
    assert skipped["img09.png"] == "has no mask"
    assert "6 files left out: 2 (img10.png) has no label" in flat and "could not be read" not in flat
