"""What other programs read: the peer's .npy files by its names, tar files by WebDataset's conventions."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from small_stores import begin, contents, features, listing, make_store, write_shard
from torch.nn.functional import interpolate

from gate.errors import UsageError
from gate.extraction.layouts import make_layout
from gate.extraction.verify import verify_store

BAD = ("b/00000.png",)


def test_the_peers_training_script_finds_its_files(tmp_path: Path) -> None:
    store = make_store(tmp_path / "feature", layout="npy", bad=BAD)
    names = listing(10)
    # as it does: split and index among the sorted files, without padding
    for index, name in enumerate(names):
        file = store / f"train{index}.npy"
        assert file.exists() == (name not in BAD)
        if name in BAD:
            continue
        array = torch.from_numpy(np.load(file))
        assert array.shape == (5, 4, 2)
        made = features([name], maps_only=True)
        assert torch.equal(array[:3], made["up1"][0])
        assert torch.equal(array[3:], made["up0"][0].repeat_interleave(2, 1).repeat_interleave(2, 2))
        resized = interpolate(array.type(torch.FloatTensor).unsqueeze(0), (8, 8), mode="bilinear").squeeze()
        assert resized.shape == (5, 8, 8)


@pytest.mark.parametrize(
    ("layout", "path"),
    [
        ("npy[split=test]", "test{index}.npy"),
        ("npy[names=file]", "{stem}.npy"),
        ("npy[layers=apart]", "up-level1-repeat0-res-out/train{index}.npy"),
        ("npy[layers=apart,first=sample,names=file]", "{stem}/up-level1-repeat0-res-out.npy"),
    ],
)
def test_files_are_named_as_the_peers_extraction_names_them(tmp_path: Path, layout: str, path: str) -> None:
    names = sorted(["a/x.png", "a/y.v2.jpg", "b/x.png"])
    maps = torch.arange(24.0).reshape(3, 2, 2, 2)
    with begin(tmp_path / "store", names, 2, layout=layout) as writer:
        for k in writer.missing():
            rows = writer.rows(k)
            writer.write(k, names[rows], {"up1.resnet0": maps[rows]})
        assert writer.finish().layout == layout
    for index, name in enumerate(names):
        file = tmp_path / "store" / path.format(index=index, stem=name.rpartition(".")[0])
        assert np.array_equal(np.load(file), maps[index].numpy())
    assert len([*(tmp_path / "store").rglob("*.npy")]) == 3


def test_names_that_would_meet_in_one_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a.jpg and a.png would both become a.npy"):
        begin(tmp_path / "store", ["a.jpg", "a.png"], layout="npy[names=file]")
    assert not (tmp_path / "store").exists()
    begin(tmp_path / "store", ["a.jpg", "a.png"], layout="npy").close()


def test_what_npy_cannot_hold_is_said(tmp_path: Path) -> None:
    n = listing(2)
    maps, vectors = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3)
    with begin(tmp_path / "store", n, layout="npy") as writer:
        for given, told in (
            ({"up1": maps, "up2": vectors}, "one kind and dtype, not up1, up2; choose npy.layers=apart"),
            ({"up1": maps, "up2": maps.half()}, "one kind and dtype"),
            ({"up1": maps, "up1.attention0.block0.self.map": maps}, "attention map has no place among"),
            ({"up1": maps.bfloat16()}, "holds no bfloat16; store fp16 or fp32"),
        ):
            with pytest.raises(UsageError, match=told):
                writer.write(0, n, given)
        assert writer.missing() == [0]
    with (
        begin(tmp_path / "tar", n, layout="webdataset") as writer,
        pytest.raises(UsageError, match="no bfloat16"),
    ):
        writer.write(0, n, {"up1": maps.bfloat16()})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("npz", r"Unknown layout 'npz'\. Did you mean 'npy'"),
        ("npy[layer=apart]", "Unknown setting of npy 'layer'. Did you mean 'layers'"),
        ("npy[layers=both]", "layers=together or apart, not layers=both"),
        ("npy[split='../x']", "begins a file's name"),
        ("webdataset[split=test]", "webdataset has no settings"),
    ],
)
def test_layouts_that_do_not_exist(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        make_layout(text)


def test_a_dtype_is_refused_before_anything_is_computed() -> None:
    for text in ("npy", "webdataset"):
        make_layout(text).holds("float16")
        with pytest.raises(UsageError, match="no bfloat16"):
            make_layout(text).holds("bfloat16")
    make_layout("safetensors").holds("bfloat16")


def test_a_layouts_name_makes_it_again() -> None:
    for text in ("safetensors", "webdataset", "npy", "npy[layers=apart,names=file,split=val]"):
        assert make_layout(text).name == text
    assert make_layout("npy[split=train,layers=together]").name == "npy"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_tar_files_are_read_by_webdatasets_conventions(tmp_path: Path, dtype: torch.dtype) -> None:
    store = make_store(tmp_path / "store", layout="webdataset", dtype=dtype, bad=BAD)
    samples = [sample for file in sorted(store.glob("shards/*.tar")) for sample in groups(file)]
    names = [name for name in listing(10) if name not in BAD]
    assert [json.loads(sample["json"])["name"] for sample in samples] == names
    for name, sample in zip(names, samples, strict=True):
        assert listing(10)[json.loads(sample["json"])["index"]] == name
        for layer, wanted in features([name], dtype).items():
            assert torch.equal(torch.from_numpy(np.load(io.BytesIO(sample[f"{layer}.npy"]))), wanted[0])


def groups(file: Path) -> list[dict[str, bytes]]:
    """Members grouped by key, as WebDataset's documentation says it groups them."""
    found: list[dict[str, bytes]] = []
    last = None
    with tarfile.open(file) as tar:
        for member in tar:
            if member.name.startswith("__") and member.name.endswith("__"):
                continue
            parts = re.fullmatch(r"((?:.*/)?[^.]+)[.]([^/]*)", member.name)
            stream = tar.extractfile(member)
            assert parts and stream
            if parts[1] != last:
                found.append({})
            last = parts[1]
            assert parts[2] not in found[-1]
            found[-1][parts[2]] = stream.read()
    return found


def test_tar_files_carry_neither_times_nor_owners(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", layout="webdataset")
    with tarfile.open(store / "shards/00000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


@pytest.mark.parametrize("layout", ["safetensors", "npy", "npy[layers=apart]", "webdataset"])
def test_any_damaged_byte_is_found_and_the_cure_works(tmp_path: Path, layout: str) -> None:
    store = make_store(tmp_path / "store", 6, 2, layout=layout, bad=BAD)
    assert verify_store(store) == []
    whole, generator = contents(store), np.random.default_rng(0)
    for name, content in whole.items():
        if name == "store.json":
            continue
        for place in {0, len(content) - 1, *generator.integers(len(content), size=8).tolist()}:
            broken = bytearray(content)
            broken[place] ^= 1 << int(generator.integers(8))
            (store / name).write_bytes(broken)
            told = verify_store(store)
            assert len(told) == 1 and "gate extract" in told[0], (name, place)
            (store / name).write_bytes(content)
    for name, content in whole.items():
        if name == "store.json":
            continue
        (store / name).write_bytes(content[:-1])
        (problem,) = verify_store(store)
        bad = re.match(r"(\S+) .*; delete it and repeat the command", problem)
        assert bad
        Path(bad[1]).unlink()
        make_store_again(store, layout)
        assert contents(store) == whole


def make_store_again(store: Path, layout: str) -> None:
    with begin(store, listing(6), 2, layout) as writer:
        assert not writer.finished
        (k,) = writer.missing()
        write_shard(writer, k, bad=BAD, maps_only=layout == "npy")
        writer.finish()


def test_missing_exchanged_and_foreign_shards_are_named(tmp_path: Path) -> None:
    store, twin = make_store(tmp_path / "store"), make_store(tmp_path / "twin", bad=("a/00001.png",))
    first, second = (store / f"shards/0000{k}.safetensors" for k in (0, 1))
    whole = first.read_bytes()
    first.unlink()
    assert verify_store(store)[0].startswith(f"{first} is missing; repeat the command: gate extract")
    first.write_bytes(second.read_bytes())
    assert verify_store(store)[0].startswith(f"{first} is not of this store; delete it")
    first.write_bytes((twin / "shards/00000.safetensors").read_bytes())
    (told,) = verify_store(store)
    assert told.startswith(f"{first} is not the one that the index names; delete it and repeat the command")
    first.write_bytes(whole)
    (store / "shards/00003.safetensors").write_bytes(whole)
    assert verify_store(store) == [
        f"{store / 'shards/00003.safetensors'} is no shard of this store; delete it."
    ]


def test_an_unfinished_store_is_verified_as_far_as_it_is(tmp_path: Path) -> None:
    with begin(tmp_path / "store", listing(10)) as writer:
        write_shard(writer, 1)
    seen: list[tuple[str, int, int]] = []
    (told,) = verify_store(tmp_path / "store", lambda *step: seen.append(step))
    assert "was interrupted, 1 of 3 shards are there; finish it with: gate extract" in told
    assert [step[1:] for step in seen] == [(1, 3), (2, 3), (3, 3)]


def test_stores_below_a_folder_are_verified_one_by_one(tmp_path: Path) -> None:
    make_store(tmp_path / "all/freeu")
    make_store(tmp_path / "all/prompt")
    assert verify_store(tmp_path / "all") == []
    (tmp_path / "all/prompt/shards/00000.safetensors").unlink()
    (tmp_path / "all/freeu/store.json").write_text("{}")
    told = verify_store(tmp_path / "all")
    assert (
        "freeu/store.json is damaged" in told[0] and "prompt/shards/00000.safetensors is missing" in told[1]
    )
    with pytest.raises(UsageError, match=r"holds no store.json"):
        verify_store(tmp_path)
