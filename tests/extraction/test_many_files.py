"""`gate extract` over ten thousand files: killed five times, repeated, verified; memory as with a thousand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gate.data import load_data
from gate.extraction.dataset import FeatureStore, load_features

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals, and the peak from wait4"),
]
N = 10_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small pictures, each another one: a scene with its number in the first pixels. One in a hundred is broken."""
    root = tmp_path_factory.mktemp("images")
    scenes = [sample.image[::2, ::2] for sample in load_data("scenes-held-out", n=50, size=64)]
    for i in range(N):
        file = root / f"{i // 1000}" / f"{i:05d}.png"
        file.parent.mkdir(exist_ok=True)
        if i % 100 == 7:
            file.write_bytes(b"cut off")
            continue
        image = scenes[i % 50].copy()
        image[0, :2] = np.frombuffer(i.to_bytes(6, "big"), np.uint8).reshape(2, 3)
        Image.fromarray(image).save(file)
    return root


def command(images: Path, store: Path, *more: str) -> subprocess.Popen[bytes]:
    """The cheapest layer, at half the backbone's size, as vectors."""
    flags = [
        "--images",
        images,
        "--layers",
        "down0",
        "--image-size",
        "32",
        "--vector",
        "--output",
        store,
        *more,
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "gate", "extract", *map(str, flags)],
        env={**os.environ, "GATE_CACHE": str(store.parent / "cache"), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def shards(store: Path) -> int:
    return len(list(store.glob("shards/*.safetensors")))


def test_killed_five_times_nothing_is_lost_and_nothing_is_there_twice(folder: Path, tmp_path: Path) -> None:
    store, generator, left = tmp_path / "killed", np.random.default_rng(0), []
    for kill in range(5):
        process = command(folder, store, "--workers", "2", "--per-shard", "250")
        until = shards(store) + 3 + int(generator.integers(3))  # of 40
        began = time.monotonic()
        while process.poll() is None and shards(store) < until:
            assert time.monotonic() - began < 120
            time.sleep(0.005)
        assert process.poll() is None, f"it ended before kill {kill}"
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        left.append(shards(store))
    assert left == sorted(left) and 15 <= left[-1] < 40, left
    kept = {file.name: file.stat().st_mtime_ns for file in store.glob("shards/*.safetensors")}
    assert command(folder, store, "--workers", "2", "--per-shard", "250").wait() == 0
    after = {file.name: file.stat().st_mtime_ns for file in store.glob("shards/*.safetensors")}
    assert len(after) == 40 and all(after[name] == at for name, at in kept.items())
    verified = [sys.executable, "-m", "gate", "extract", "--verify", str(store)]
    assert subprocess.run(verified, capture_output=True, check=False).returncode == 0
    assert not list(store.rglob("*tmp*"))
    found = load_features(store)
    names = sorted(str(f.relative_to(folder)) for f in folder.rglob("*.png"))
    assert sorted([*found.names, *found.skipped]) == names and len(found) == N - N // 100
    plain = tmp_path / "plain"
    assert command(folder, plain, "--workers", "2", "--per-shard", "250").wait() == 0
    assert _equal(found, load_features(plain))


def _equal(one: FeatureStore, other: FeatureStore) -> bool:
    rows = torch.randperm(len(one), generator=torch.Generator().manual_seed(0))[:500].tolist()
    same = [torch.equal(one[i]["down0"], other[one.names[i]]["down0"]) for i in rows]
    apart = {one[i]["down0"].numpy().tobytes() for i in rows}
    return all(same) and len(apart) == 500  # each picture has its own features


def test_memory_with_ten_thousand_files_is_that_with_a_thousand(folder: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    (few / "0").symlink_to(folder / "0")
    peaks = {}
    for n, images in ((1_000, few), (N, folder)):
        process = command(images, tmp_path / str(n) / "store", "--workers", "1")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        peaks[n] = usage.ru_maxrss
    print(peaks)
    assert peaks[N] <= 1.05 * peaks[1_000], peaks
