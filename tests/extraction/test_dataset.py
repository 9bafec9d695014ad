"""What was stored is what is read: every dtype, by index and by name, in workers, mapped."""

from __future__ import annotations

import csv
import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_stores import COMMAND, begin, features, listing, make_store, write_shard
from torch.utils.data import DataLoader

from gate.errors import DamagedError, UsageError
from gate.extraction.dataset import FeatureStore, load_features

EXAMPLES = Path(__file__).parents[2] / "examples"
BAD = ("a/00001.png", "b/00000.png", "b/00001.png", "b/00002.png", "b/00003.png")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    store = load_features(make_store(tmp_path / "store", dtype=dtype))
    assert store.names == tuple(listing(10)) and len(store) == 10
    assert store.layers == ("up1", "up2.resnet0") and store.shapes["up1"] == (3, 4, 2)
    for i, name in enumerate(store.names):
        wanted = features([name], dtype)
        for one in (store[i], store[name], store[i - 10]):
            assert all(torch.equal(one[layer], wanted[layer][0]) for layer in store.layers)
    assert torch.equal(store.arrays("up1"), features(store.names, dtype)["up1"])


def test_extreme_values_survive(tmp_path: Path) -> None:
    odd = torch.tensor([[float("inf"), -0.0, float("nan"), 1e-45, torch.finfo(torch.float32).max]])
    with begin(tmp_path / "store", ["a.png"]) as writer:
        writer.write(0, ["a.png"], {"up1": odd, "up2": torch.empty(1, 0, 3)})
        writer.finish()
    store = load_features(tmp_path / "store")
    assert torch.equal(store[0]["up1"].view(torch.int32), odd[0].view(torch.int32))
    assert store[0]["up2"].shape == (0, 3)


def test_strided_tensors_and_views_of_one_memory(tmp_path: Path) -> None:
    base = torch.arange(48.0).reshape(2, 3, 4, 2)
    given = {
        "a": base,
        "b": base,
        "c": base.to(memory_format=torch.channels_last),
        "d": base[:, ::2].transpose(2, 3),
    }
    with begin(tmp_path / "store", ["a.png", "b.png"]) as writer:
        writer.write(0, ["a.png", "b.png"], given)
        writer.finish()
    read = load_features(tmp_path / "store")[:]
    assert all(torch.equal(read[name], given[name]) for name in given)


def test_slices_lists_and_masks(tmp_path: Path) -> None:
    store = load_features(make_store(tmp_path / "store", bad=BAD))
    everything = features(store.names)["up1"]
    assert len(store) == 5 and store.skipped == dict.fromkeys(BAD, "cannot be decoded")
    mask = np.array([True, False, True, False, True])
    for index, rows in (
        (slice(1, 4), [1, 2, 3]),
        (slice(None, None, -2), [4, 2, 0]),
        ([4, 0, 4, -1], [4, 0, 4, 4]),
        (torch.tensor([3, 1]), [3, 1]),
        (np.array([2]), [2]),
        ([store.names[3], store.names[0]], [3, 0]),
        (mask, [0, 2, 4]),
        ([], []),
    ):
        assert torch.equal(store[index]["up1"], everything[rows]), index
    assert torch.equal(store[np.int64(2)]["up1"], everything[2])
    assert [one["up1"].sum().item() for one in store] == everything.flatten(1).sum(1).tolist()
    for wrong in (5, -6, [0, 5], mask[:3]):
        with pytest.raises(IndexError):
            store[wrong]


def test_layers_and_dtype_are_chosen(tmp_path: Path) -> None:
    folder = make_store(tmp_path / "store", dtype=torch.bfloat16)
    one = load_features(folder, "up2.resnet0", dtype=torch.float32)
    assert one.layers == ("up2.resnet0",) and one[0]["up2.resnet0"].dtype == torch.float32
    assert one.arrays("up2.resnet0").numpy().shape == (10, 5)
    assert [*load_features(folder, ["up2.resnet0", "up1"])[0]] == ["up2.resnet0", "up1"]
    with pytest.raises(UsageError, match=r"Unknown layer 'up2.resnet1'\. Did you mean 'up2.resnet0'"):
        load_features(folder, ["up2.resnet1"])
    with pytest.raises(UsageError, match="Unknown layer 'up1'"):
        one.arrays("up1")


def test_names_are_found_and_near_ones_are_said(tmp_path: Path) -> None:
    store = load_features(make_store(tmp_path / "store", bad=BAD))
    assert store.index_of("b/00004.png") == 4
    with pytest.raises(UsageError, match=r"Unknown image '00004.png'.*'b/00004.png'"):
        store["00004.png"]
    with pytest.raises(UsageError, match="has no features: it cannot be decoded"):
        store["a/00001.png"]


def test_a_name_that_is_no_text_and_one_of_another_script(tmp_path: Path) -> None:
    names = sorted(["caf\udce9.png", "päron/日本.png", 'quote".png', "new\nline.png"])
    with begin(tmp_path / "store", names) as writer:
        write_shard_of_any(writer, names)
        writer.finish()
    store = load_features(tmp_path / "store")
    assert store.names == tuple(names) and store.index_of("caf\udce9.png") == names.index("caf\udce9.png")


def write_shard_of_any(writer: Any, names: list[str]) -> None:
    writer.write(0, names, {"up1": torch.arange(float(len(names))).reshape(-1, 1)})


def test_what_is_given_may_be_written_to(tmp_path: Path) -> None:
    folder = make_store(tmp_path / "store")
    store, before = load_features(folder), (folder / "shards/00000.safetensors").read_bytes()
    for change in (store[0], store[0:2], {"up1": store.arrays("up1")}):
        change["up1"].zero_()
    assert torch.equal(store[0]["up1"], features(store.names)["up1"][0])
    assert (folder / "shards/00000.safetensors").read_bytes() == before


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_dataloader_workers_read_what_one_process_reads(tmp_path: Path, start: str) -> None:
    store = load_features(make_store(tmp_path / "store", 30, 4))
    store[0]  # opened before the workers are made
    loader = DataLoader(store, batch_size=7, num_workers=2, multiprocessing_context=start)
    batches = [*loader]
    for layer in store.layers:
        assert torch.equal(torch.cat([batch[layer] for batch in batches]), store.arrays(layer))
    by_name = DataLoader(store, sampler=[*reversed(store.names)], batch_size=10, num_workers=2)
    assert torch.equal(torch.cat([batch["up1"] for batch in by_name]), store[::-1]["up1"])


def test_a_store_is_sent_without_what_it_has_opened(tmp_path: Path) -> None:
    store = load_features(make_store(tmp_path / "store"))
    store[:]
    sent: FeatureStore = pickle.loads(pickle.dumps(store))
    assert torch.equal(sent[:]["up1"], store[:]["up1"]) and sent.names == store.names


def test_opening_reads_headers_and_no_features(tmp_path: Path) -> None:
    folder = make_store(tmp_path / "store")
    shard = folder / "shards/00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # a feature: opening does not look at it
    shard.write_bytes(content)
    assert len(load_features(folder)) == 10
    content[40] ^= 1  # the header
    shard.write_bytes(content)
    with pytest.raises(DamagedError, match="delete it and repeat the command"):
        load_features(folder)
    shard.unlink()
    with pytest.raises(DamagedError, match=f"00001.safetensors is missing; repeat the command: {COMMAND}"):
        load_features(folder)


def test_what_is_no_finished_store_is_refused(tmp_path: Path) -> None:
    with begin(tmp_path / "all/freeu", listing(10)) as writer:
        write_shard(writer, 0)
    make_store(tmp_path / "all/prompt")
    make_store(tmp_path / "tar", layout="webdataset")
    with pytest.raises(UsageError, match=f"was interrupted; finish it with: {COMMAND}"):
        load_features(tmp_path / "all/freeu")
    with pytest.raises(UsageError, match=r"holds 2 stores; load one of '.*all/freeu', '.*all/prompt'\."):
        load_features(tmp_path / "all")
    with pytest.raises(UsageError, match="was written as webdataset"):
        load_features(tmp_path / "tar")
    with pytest.raises(UsageError, match=r"holds a store; load '.*/tar'\."):
        load_features(tmp_path)
    for nothing in (tmp_path / "tar/shards", tmp_path / "nowhere"):
        with pytest.raises(UsageError, match=r"holds no store.json, so it is no store of features"):
            load_features(nothing)


def test_shards_of_nothing_but_unreadable_images_are_passed_over(tmp_path: Path) -> None:
    bad = listing(12)[4:8]
    store = load_features(make_store(tmp_path / "store", 12, 4, bad=bad))
    assert len(store) == 8 and set(store.skipped) == set(bad)
    assert torch.equal(store[4:]["up1"], features(listing(12)[8:])["up1"])


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["train_on_features", "sklearn_on_features"])
def test_the_examples_learn_what_is_in_the_features(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names, generator = listing(60), torch.Generator().manual_seed(0)
    labels = {name: ("cat", "dog")[i % 3 == 0] for i, name in enumerate(names)}
    with begin(tmp_path / "store", names, 16) as writer:
        for k in writer.missing():
            chunk = names[writer.rows(k)]
            good = [image for image in chunk if image != names[5]]
            maps = torch.randn(len(good), 4, 3, 3, generator=generator)
            maps[:, 1] += torch.tensor([2.0 if labels[image] == "cat" else -2.0 for image in good]).reshape(
                -1, 1, 1
            )
            writer.write(
                k, good, {"up1": maps.bfloat16()}, [(image, "is cut") for image in chunk if image not in good]
            )
        writer.finish()
    with (tmp_path / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("file", "label"), *labels.items()])
    share = example(name).main([str(tmp_path / "store"), str(tmp_path / "labels.csv")])
    assert share >= 0.9
    assert "59 images" in capsys.readouterr().out
