"""A store is written in any order, resumed, refused to others; what is on the disk is whole shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_stores import COMMAND, LAYOUTS, begin, contents, features, forked, listing, make_store, write_shard

import gate.extraction.output as output
from gate.errors import ConfigurationError, DamagedError, UsageError
from gate.extraction.dataset import load_features
from gate.extraction.manifest import read_manifest
from gate.extraction.store import StoreWriter
from gate.extraction.verify import verify_store

BAD = ("a/00001.png", "b/00000.png", "b/00001.png", "b/00002.png", "b/00003.png")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_order_and_the_process_that_wrote_a_shard_leave_no_trace(tmp_path: Path, layout: str) -> None:
    maps = layout == "npy"
    plain = make_store(tmp_path / "plain", layout=layout, bad=BAD)
    with begin(tmp_path / "mixed", listing(10), layout=layout) as writer:
        assert writer.missing() == [0, 1, 2]
        write_shard(writer, 2, bad=BAD, maps_only=maps)
        for k in (1, 0):
            assert forked(lambda k=k: write_shard(writer, k, bad=BAD, maps_only=maps)) == 0  # type: ignore[misc]
        assert writer.missing() == []
        done = writer.finish()
    assert contents(tmp_path / "mixed") == contents(plain)
    assert [entry.rows for entry in done.shards] == [3, 1, 1]
    assert {skip.file for skip in done.skipped} == set(BAD)
    assert verify_store(plain) == []


def test_store_json_says_what_was_asked_and_what_there_is(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", dtype=torch.bfloat16)
    said = json.loads((store / "store.json").read_text())
    assert said["asked"]["timestep"] == 50 and said["command"] == COMMAND and said["state"] == "finished"
    assert said["layers"] == {
        "up1": {"shape": [3, 4, 2], "dtype": "bfloat16"},
        "up2.resnet0": {"shape": [5], "dtype": "bfloat16"},
    }
    assert (said["images"], said["per_shard"], len(said["shards"])) == (10, 4, 3)
    sizes = [(store / entry["file"]).stat().st_size for entry in said["shards"]]
    assert sizes == [entry["bytes"] for entry in said["shards"]]


def test_resume_makes_what_is_missing_and_keeps_the_size_of_shards(tmp_path: Path) -> None:
    with begin(tmp_path / "store", listing(10), 4) as writer:
        write_shard(writer, 1)
    untouched = (tmp_path / "store/shards/00001.safetensors").stat().st_mtime_ns
    (tmp_path / "store/shards/00002.safetensors.tmp").write_bytes(b"half")
    (tmp_path / "store/shards/.tmpAb3dE6").write_bytes(b"half of what safetensors writes before it renames")
    with begin(tmp_path / "store", listing(10), 7) as writer:
        assert (writer.per_shard, writer.missing(), writer.finished) == (4, [0, 2], False)
        assert {*contents(tmp_path / "store")} == {"store.json", "shards/00001.safetensors"}
        for k in writer.missing():
            write_shard(writer, k)
        writer.finish()
    assert (tmp_path / "store/shards/00001.safetensors").stat().st_mtime_ns == untouched
    with begin(tmp_path / "store", listing(10), 4) as writer:
        assert writer.finished and writer.missing() == []


def test_another_request_is_refused_and_the_field_is_named(tmp_path: Path) -> None:
    begin(tmp_path / "store", listing(10)).close()
    for field, told in (
        ({"timestep": 100}, r"timestep \(50 there, 100 now\)"),
        ({"backbone": {"name": "sd15"}}, r"backbone.name \(tiny there, sd15 now\)"),
        ({"seed": 1}, r"seed \(null there, 1 now\)"),
    ):
        with pytest.raises(UsageError, match=rf"{told}; choose another --output, or repeat .*: {COMMAND}"):
            begin(tmp_path / "store", listing(10), **field)
    with pytest.raises(UsageError, match=r"the images \(10 there, 11 now\)"):
        begin(tmp_path / "store", listing(11))
    with pytest.raises(UsageError, match="the names of the images"):
        begin(tmp_path / "store", [*listing(9), "z.png"])
    with pytest.raises(UsageError, match=r"layout \(safetensors there, webdataset now\)"):
        begin(tmp_path / "store", listing(10), layout="webdataset")


def test_folders_that_are_no_store_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").touch()
    with pytest.raises(UsageError, match="is no store of features; choose another --output"):
        begin(tmp_path / "photos", listing(4))
    with pytest.raises(UsageError, match="is a file"):
        begin(tmp_path / "photos/a.png", listing(4))
    assert [f.name for f in (tmp_path / "photos").iterdir()] == ["a.png"]


def test_shards_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    names = listing(10)
    with begin(tmp_path / "store", names) as writer:
        for given in (names[:3], names[4:8], names[3::-1]):
            with pytest.raises(ValueError, match="each image of rows"):
                writer.write(0, given, features(given))
        with pytest.raises(ValueError, match="as many rows"):
            writer.write(0, names[:4], features(names[:3]))
        write_shard(writer, 0)
        with pytest.raises(ConfigurationError, match=r"up1 \(3x4x2 float32 there, 3x4x2 float16 now\)"):
            write_shard(writer, 1, torch.float16)
        with pytest.raises(ConfigurationError, match=r"2 of 3 shards of .* are missing \(1, 2\); repeat"):
            writer.finish()
    for wrong in (["b", "a"], ["a", "a"], ["../a"], ["/a"], []):
        with pytest.raises(ValueError):
            begin(tmp_path / "other", wrong)


def test_a_store_of_unreadable_images_alone_is_none(tmp_path: Path) -> None:
    with (
        begin(tmp_path / "store", listing(5)) as writer,
        pytest.raises(ConfigurationError, match="None of 5 images could be used; the first, a/00000.png"),
    ):
        for k in writer.missing():
            write_shard(writer, k, bad=listing(5))
        writer.finish()


def test_two_commands_do_not_write_to_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "PATIENCE", 0.2)
    another = pytest.raises(ConfigurationError, match="Another process writes to")
    with begin(tmp_path / "store", listing(4)), another:
        begin(tmp_path / "store", listing(4))
    begin(tmp_path / "store", listing(4)).close()


def test_a_damaged_or_foreign_shard_on_resume(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with begin(store, listing(10)) as writer:
        for k in (0, 1, 2):
            write_shard(writer, k)
    shard = store / "shards/00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    with begin(store, listing(10)) as writer:
        assert writer.missing() == [1]
        assert writer.remarks == ["shards/00001.safetensors was damaged, and is extracted anew"]
    other = make_store(tmp_path / "other", per_shard=5)
    shard.write_bytes((other / "shards/00001.safetensors").read_bytes())
    with (
        begin(store, listing(10)) as writer,
        pytest.raises(DamagedError, match="is not of this store; delete it"),
    ):
        writer.missing()


def test_a_projection_is_kept_with_the_store_and_is_its_own(tmp_path: Path) -> None:
    arrays = {"up1": np.arange(6, dtype=np.float32).reshape(2, 3)}
    with begin(tmp_path / "store", listing(4)) as writer:
        assert writer.projection() is None
        writer.write_projection(arrays)
    with begin(tmp_path / "store", listing(4)) as writer:
        found = writer.projection()
        assert found is not None and np.array_equal(found["up1"], arrays["up1"])
        write_shard(writer, 0)
        assert writer.finish().projection is not None
    loaded = load_features(tmp_path / "store").projection
    assert loaded is not None and np.array_equal(loaded["up1"], arrays["up1"])
    with begin(tmp_path / "other", listing(4), seed=3) as writer:
        writer.write_projection(arrays)
    (tmp_path / "other/projection.safetensors").replace(tmp_path / "store/projection.safetensors")
    assert any(
        "projection.safetensors is not of this store" in told for told in verify_store(tmp_path / "store")
    )
    (tmp_path / "store/projection.safetensors").unlink()
    assert any("projection.safetensors is missing" in told for told in verify_store(tmp_path / "store"))


def test_store_json_is_sealed(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    text = (store / "store.json").read_text()
    (store / "store.json").write_text(text.replace('"timestep": 50', '"timestep": 51'))
    with pytest.raises(DamagedError, match="was changed after gate wrote it"):
        read_manifest(store)
    for wrong in (text[:50], "{}", json.dumps({k: v for k, v in json.loads(text).items() if k != "digest"})):
        (store / "store.json").write_text(wrong)
        with pytest.raises(DamagedError):
            load_features(store)
    (store / "store.json").write_text(text.replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(UsageError, match="newer gate"):
        read_manifest(store)


def test_a_writer_that_is_sent_to_a_process_holds_no_lock(tmp_path: Path) -> None:
    import pickle

    with begin(tmp_path / "store", listing(4)) as writer:
        sent: StoreWriter = pickle.loads(pickle.dumps(writer))
        sent.close()
        write_shard(sent, 0)
        assert writer.missing() == [] and writer.finish().images == 4
