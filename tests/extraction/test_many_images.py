"""Ten thousand images: killed five times, resumed, verified, read; memory as with a thousand."""

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
from small_stores import contents, listing

from gate.extraction.dataset import load_features
from gate.extraction.verify import verify_store

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")]
SCRIPT = """
import sys
from pathlib import Path
import torch
from small_stores import begin, features, listing
from gate.extraction.behind import AsyncWriter
from gate.extraction.dataset import load_features
from gate.extraction.verify import verify_store
torch.set_num_threads(1)
folder, n = Path(sys.argv[1]), int(sys.argv[2])
names = listing(n)
bad = set(names[7::100])
with begin(folder, names, 32) as writer:
    print(len(writer.missing()), flush=True)
    with AsyncWriter(writer) as behind:
        for k in writer.missing():
            chunk = names[writer.rows(k)]
            good = [name for name in chunk if name not in bad]
            one = features(good)
            maps = one["up1"].repeat(1, 8, 4, 8)  # 12 KB an image
            behind.put(k, good, {**one, "wide": maps}, [(name, "is cut") for name in chunk if name in bad])
    writer.finish()
assert verify_store(folder) == []
store = load_features(folder)
for i in torch.randperm(len(store))[:2000].tolist():
    store[i]
print([int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


def command(folder: Path, n: int) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(n)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


def test_ten_thousand_images_are_killed_five_times_and_nothing_is_lost_or_twice(tmp_path: Path) -> None:
    store, generator, left = tmp_path / "killed", np.random.default_rng(0), [-(-10_000 // 32)]
    for _ in range(5):
        process = command(store, 10_000)
        assert process.stdout
        left.append(int(process.stdout.readline()))
        until = left[-1] * (1 - 0.15 * (1 + generator.random()))
        while process.poll() is None and 313 - len(list(store.glob("shards/*.safetensors"))) > until:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    process = command(store, 10_000)
    last = process.communicate()[0].split()[0]
    assert process.returncode == 0 and left == sorted(left, reverse=True) and int(last) < 313 * 0.5
    plain = command(tmp_path / "plain", 10_000)
    assert plain.wait() == 0 and contents(store) == contents(tmp_path / "plain")
    found = load_features(store)
    assert verify_store(store) == []
    assert sorted([*found.names, *found.skipped]) == listing(10_000) and len(found) == 9_900
    assert torch.equal(found["b/03333.png"]["wide"], found["b/03333.png"]["up1"].repeat(8, 4, 8))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_memory_with_ten_thousand_images_is_that_with_a_thousand(tmp_path: Path) -> None:
    peaks = {}
    for n in (1_000, 10_000):
        process = command(tmp_path / str(n), n)
        peaks[n] = int(process.communicate()[0].split()[-1])
        assert process.returncode == 0
    print(peaks)
    assert peaks[10_000] <= 1.05 * peaks[1_000], peaks
