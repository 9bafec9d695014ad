from __future__ import annotations

from pathlib import Path

import pytest
import torch

import gate
from gate.backbone import Backbone
from gate.data import load_data
from gate.errors import ConfigurationError, IncomparableError, UsageError
from gate.extraction.head import Amalgamated, open_head
from gate.extraction.job import extract
from gate.tasks.amalgamation import key_of, load_amalgam
from gate.tasks.config import make_config
from gate.tasks.evaluate import evaluate


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return gate.load_backbone("tiny")


@pytest.fixture(scope="module")
def head(tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task") / "t"
    small = {"samples": 12, "test": 8, "seeds": 1, "layers": "up2", "unweighted": "up1", "resamples": 200}
    asked = {
        "task": "segmentation-linear[epochs=1]",
        "amalgamate": "vanilla,prompt@300",
        "output": str(folder),
    }
    evaluate(make_config({**small, **asked}), backbone=tiny)
    return folder / "heads" / "amalgamation-0.amalgam.safetensors"


def test_what_is_stored_is_the_amalgam_of_what_each_technique_gives(
    tiny: Backbone, head: Path, tmp_path: Path
) -> None:
    done = extract(
        head=str(head),
        data="scenes-held-out",
        samples=9,
        output=str(tmp_path / "s"),
        batch_size=4,
        workers=1,
        cache=False,
    )
    stored = gate.load_features(done.stores["amalgamation"])
    samples = load_data("scenes-held-out", n=9, size=64)
    each = {
        key_of(source, "up2"): tiny.extract(samples, layers="up2", timestep=t, technique=name)["up2"]  # type: ignore[attr-defined]
        for source, name, t in (("vanilla", "", 50), ("prompt@300", "prompt", 300))
    }
    each["up1"] = tiny.extract(samples, layers="up1", timestep=50)["up1"]  # type: ignore[attr-defined]
    amalgam, _, _ = load_amalgam(head)
    with torch.no_grad():
        wanted = amalgam(each)
    for i in range(9):
        for layer, value in wanted.items():
            torch.testing.assert_close(stored[i][layer], value[i], rtol=1e-3, atol=1e-4)
    assert wanted["up2"].shape[1] == 3 * 48 and wanted["up1"].shape[1] == 80
    manifest = (tmp_path / "s" / "store.json").read_text()
    assert "prompt@300" in manifest and '"technique": "amalgamation"' in manifest


def test_the_epilogue_comes_after_the_amalgam(head: Path, tmp_path: Path) -> None:
    done = extract(
        head=str(head),
        data="scenes-held-out",
        samples=8,
        output=str(tmp_path),
        pool=2,
        normalise=True,
        cache=False,
    )
    stored = gate.load_features(done.stores["amalgamation"])[0]["up2"]
    assert stored.shape == (3 * 48, 2, 2)
    torch.testing.assert_close(stored.norm(dim=0), torch.ones(2, 2))


def test_what_the_head_says_is_not_asked_for_again(head: Path, tmp_path: Path) -> None:
    for more in ({"layers": "up1"}, {"timestep": 3}, {"techniques": "prompt"}, {"seed": 2}):
        with pytest.raises(UsageError, match="is what the head says"):
            extract(head=str(head), data="scenes-held-out", output=str(tmp_path), **more)  # type: ignore[arg-type]
    (tmp_path / "x").write_bytes(b"?")
    with pytest.raises(ConfigurationError, match="no saved amalgamation"):
        extract(head=str(tmp_path / "x"), data="scenes-held-out", output=str(tmp_path / "o"))


def test_other_weights_are_refused(tiny: Backbone, head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(tiny), "fingerprint", lambda self: "another")
    with pytest.raises(IncomparableError, match="train a head on these"):
        Amalgamated.opened(open_head(head), tiny, load_data("scenes-held-out", n=8, size=64))
