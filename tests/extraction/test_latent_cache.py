"""The latent cache: the bits of encoding, whoever wrote them; damage is a miss; old files go first; the command."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gate.backbone import pixels
from gate.extraction import latents
from gate.extraction.cache_folder import groups, make_room
from gate.extraction.latents import LatentCache, encode_cached, key_of, module_hash
from gate.sample import Sample
from tests.closed_form import ClosedForm, flat_samples
from tests.small_vae import Counting, Small
from tests.threads import one_thread

__all__ = ["one_thread"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def small() -> Any:
    return Small()


@pytest.fixture
def counted(small: Any, monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(small, monkeypatch)


@pytest.fixture
def many() -> tuple[Sample, ...]:
    rng = np.random.default_rng(0)
    return tuple(Sample(rng.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(16))


@pytest.fixture
def some(many: Any) -> tuple[Sample, ...]:
    return many[:5]


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def test_bits_are_those_of_encoding_with_and_without(
    tmp_path: Path, small: Any, some: Any, counted: Any
) -> None:
    plain = small.encode(pixels(some))
    store = LatentCache(tmp_path, small)
    for cache in (None, store, store, LatentCache(tmp_path, small)):
        x0 = encode_cached(small, some, cache)
        assert torch.equal(x0, plain) and x0.dtype == torch.float32 and x0.is_contiguous()
    assert counted.images == 5 + 5 + 5, "once for the truth, once without a cache, once to fill it"


def test_what_is_there_is_mixed_with_what_is_not_in_order(
    tmp_path: Path, small: Any, some: Any, counted: Any
) -> None:
    plain = small.encode(pixels(some))
    store = LatentCache(tmp_path, small)
    encode_cached(small, some[1:3], store)
    counted.images = 0
    mixed = [some[4], some[2], some[0], some[1], some[4]]
    assert torch.equal(encode_cached(small, mixed, store), plain[[4, 2, 0, 1, 4]])
    assert counted.images == 3
    found = LatentCache(tmp_path, small).get([*some, some[0]])
    assert [x is not None for x in found] == [True, True, True, False, True, True]
    assert all(torch.equal(found[i], plain[i]) for i in (0, 1, 2, 4))


def test_what_is_here_is_not_written_twice(tmp_path: Path, small: Any, some: Any) -> None:
    store = LatentCache(tmp_path, small)
    x0 = small.encode(pixels(some))
    store.put([*some, some[0]], torch.cat([x0, x0[:1]]))
    LatentCache(tmp_path, small).put(some, x0)
    (file,) = shards(tmp_path)
    assert file.name.startswith("5-") and groups(tmp_path)[0].latents == 5
    store.put([], x0[:0])
    assert len(shards(tmp_path)) == 1


def test_the_key_is_the_image_and_not_its_name(tmp_path: Path, small: Any, some: Any) -> None:
    posing = Sample(some[1].image, id=some[0].id)
    store = LatentCache(tmp_path, small)
    encode_cached(small, some[:1], store)
    assert store.get([posing]) == [None]
    assert key_of(posing) == key_of(some[1]) != key_of(some[0])
    turned = Sample(np.ascontiguousarray(some[0].image.transpose(1, 0, 2)))
    flat = Sample(some[0].image.reshape(8, 32, 3))
    assert len({key_of(s) for s in (some[0], turned, flat)}) == 3
    assert key_of(Sample(some[0].image[::-1])) == key_of(Sample(some[0].image[::-1].copy()))


def test_another_encoder_dtype_or_number_of_threads_is_another_group(
    tmp_path: Path, small: Any, some: Any
) -> None:
    weight = next(small.vae.parameters())
    store = LatentCache(tmp_path, small)
    encode_cached(small, some, store)

    def here() -> bool:
        return LatentCache(tmp_path, small).get(some[:1])[0] is not None

    assert here()
    with torch.no_grad():
        weight.view(-1)[0] += 1e-3
        assert not here()
        weight.view(-1)[0] -= 1e-3
    first = module_hash(small.vae)
    small.vae.to(memory_format=torch.channels_last)  # other kernels, other last bits
    assert module_hash(small.vae) != first and not here()
    small.vae.to(memory_format=torch.contiguous_format)
    small.vae.register_to_config(scaling_factor=0.25)
    assert not here()
    small.vae.register_to_config(scaling_factor=0.5)
    assert here()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert store.get(some[:1]) == [None]
    finally:
        torch.set_num_threads(threads)
    assert store.get(some[:1]) != [None]


def test_where_a_model_was_loaded_from_does_not_count(small: Any) -> None:
    first = module_hash(small.vae)
    small.vae.register_to_config(_name_or_path="/elsewhere")
    assert module_hash(small.vae) == first


@pytest.mark.parametrize("damage", ["cut", "flipped", "keys", "junk", "empty", "exchanged"])
def test_a_damaged_file_is_a_miss_and_is_written_anew(
    damage: str, tmp_path: Path, small: Any, some: Any, counted: Any
) -> None:
    from safetensors.numpy import load_file, save_file

    open_before = LatentCache(tmp_path, small)
    truth = encode_cached(small, some, open_before)
    (file,) = shards(tmp_path)
    data = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(data[:-100])
    elif damage == "flipped":
        held = load_file(file)
        bad = held["x0"].copy()
        bad[2, 0, 0, 0] += 1
        save_file({**held, "x0": bad}, file)
    elif damage == "keys":
        save_file({**load_file(file), "keys": np.zeros((5, 3), np.uint8)}, file)
    elif damage == "exchanged":
        held = load_file(file)
        save_file({**held, "x0": held["x0"][::-1].copy()}, file)
    else:
        file.write_bytes(b"junk" if damage == "junk" else b"")
    counted.images = 0
    fresh = LatentCache(tmp_path, small)
    for store in (open_before, fresh, LatentCache(tmp_path, small)):
        assert torch.equal(encode_cached(small, some, store), truth)
    assert counted.images == 5, "once, and then it is whole again"
    assert file not in shards(tmp_path) and len(shards(tmp_path)) == 1


def test_a_file_that_vanishes_is_a_miss(tmp_path: Path, small: Any, some: Any) -> None:
    store = LatentCache(tmp_path, small)
    truth = encode_cached(small, some, store)
    shards(tmp_path)[0].unlink()
    assert store.get(some) == [None] * 5 and torch.equal(encode_cached(small, some, store), truth)


def test_a_disk_that_takes_no_more_is_told_once_and_ends_nothing(
    tmp_path: Path, small: Any, some: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    (tmp_path / "file").touch()
    store = LatentCache(tmp_path / "file" / "cache", small, log=told.append)
    truth = small.encode(pixels(some))
    assert torch.equal(encode_cached(small, some, store), truth)
    assert torch.equal(encode_cached(small, some, store), truth)
    assert len(told) == 1 and "cannot be written (Not a directory)" in told[0] and "GATE_CACHE" in told[0]


def test_pixels_are_not_kept(tmp_path: Path) -> None:
    backbone, samples = ClosedForm(), flat_samples().samples
    store = LatentCache(tmp_path, backbone)
    assert torch.equal(encode_cached(backbone, samples, store), backbone.encode(pixels(samples)))
    assert store.get(samples) == [None] * 12 and not list(tmp_path.iterdir())


def test_half_a_key_is_not_enough(
    tmp_path: Path, small: Any, some: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two images whose keys begin alike: the second is a miss, and the file stays."""
    store = LatentCache(tmp_path, small)
    encode_cached(small, some[:1], store)
    first = key_of(some[0])
    monkeypatch.setattr(latents, "key_of", lambda sample: first[:8] + b"another!")
    assert store.get(some[1:2]) == [None] and len(shards(tmp_path)) == 1


WRITER = """
    import sys
    import torch
    from gate.backbones import load_backbone
    from gate.data import load_data
    from gate.extraction.latents import LatentCache, encode_cached

    folder, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(int(sys.argv[4]))
    tiny = load_backbone("tiny", device="cpu")
    store = LatentCache(folder, tiny)
    for round in range(2):
        for sample in load_data("scenes-held-out", n=16, size=64, seed=0).samples[first:last]:
            encode_cached(tiny, [sample], store)
"""


@pytest.mark.slow
def test_two_processes_write_at_once(
    tmp_path: Path, tiny: Any, scenes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = str(torch.get_num_threads())
    started = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path), *span, threads])
        for span in (("0", "10"), ("6", "16"))
    ]
    assert [p.wait(timeout=120) for p in started] == [0, 0]
    truth = tiny.encode(pixels(scenes.samples))
    counted = Counting(tiny, monkeypatch)
    assert torch.equal(encode_cached(tiny, scenes.samples, LatentCache(tmp_path, tiny)), truth)
    assert counted.images == 0 and not list(tmp_path.glob("*/*.tmp"))


def test_the_real_backbone_is_served(
    tmp_path: Path, tiny: Any, scenes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = tiny.encode(pixels(scenes.samples[:2]))
    counted = Counting(tiny, monkeypatch)
    for _ in range(2):
        assert torch.equal(encode_cached(tiny, scenes.samples[:2], LatentCache(tmp_path, tiny)), truth)
    assert counted.images == 2


def test_another_process_is_seen_without_opening_anew(
    tmp_path: Path, small: Any, some: Any, counted: Any
) -> None:
    ours, theirs = LatentCache(tmp_path, small), LatentCache(tmp_path, small)
    assert ours.get(some) == [None] * 5
    encode_cached(small, some, theirs)
    counted.images = 0
    encode_cached(small, some, ours)
    assert counted.images == 0


def test_a_latent_that_is_read_is_used(tmp_path: Path, small: Any, some: Any) -> None:
    store = LatentCache(tmp_path, small)
    for sample in some[:3]:
        encode_cached(small, [sample], store)
    for file in shards(tmp_path):
        os.utime(file, (1000, 1000))
    LatentCache(tmp_path, small).get(some[1:2])
    (used,) = (f for f in shards(tmp_path) if f.stat().st_mtime > 1000)
    size = sum(f.stat().st_size for f in shards(tmp_path))
    make_room(tmp_path, size // 2)
    assert shards(tmp_path) == [used]


def test_a_cache_keeps_to_its_limit(tmp_path: Path, small: Any, many: Any) -> None:
    one = LatentCache(tmp_path, small)
    encode_cached(small, many[:1], one)
    size = shards(tmp_path)[0].stat().st_size
    store = LatentCache(tmp_path, small, limit=4 * size)
    for sample in many:
        encode_cached(small, [sample], store)
    held = sum(f.stat().st_size for f in shards(tmp_path))
    assert 2 * size <= held <= 4 * size
    assert store.get(many[-1:]) != [None]
