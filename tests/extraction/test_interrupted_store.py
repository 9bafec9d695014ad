"""Killed, interrupted, out of disk: what is there is whole shards, and the rest is made by repeating the command."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from small_stores import COMMAND, LAYOUTS, begin, contents, features, forked, listing, make_store, write_shard

from gate.errors import ConfigurationError
from gate.extraction.behind import AsyncWriter
from gate.extraction.verify import verify_store


def deadly(real: Callable[..., object], calls: dict[str, int]) -> Callable[..., object]:
    """The same function, whose process dies when all calls come to `calls["deadly"]`."""

    def instead(*arguments: object) -> object:
        calls["n"] += 1
        if calls["n"] == calls["deadly"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    return instead


@pytest.mark.parametrize(
    "layout", [pytest.param(of, marks=pytest.mark.slow) if "npy" in of else of for of in LAYOUTS]
)
def test_killed_at_every_call_that_counts_a_resumed_store_is_bit_for_bit_the_uninterrupted(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = contents(make_store(tmp_path / "plain", 4, 2, layout=layout))
    calls = {"n": 0, "deadly": 0}
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, deadly(getattr(os, name), calls))
    while True:
        calls.update(n=0, deadly=calls["deadly"] + 1)
        store = tmp_path / str(calls["deadly"])
        died = forked(lambda store=store: make_store(store, 4, 2, layout=layout)) != 0  # type: ignore[misc]
        if died:
            calls.update(n=1000)
            make_store(store, 4, 2, layout=layout)
        assert contents(store) == plain and verify_store(store) == []
        if not died:
            break
    assert calls["deadly"] > 8  # two shards and store.json twice, each on the disk and then moved


def test_killed_at_random_moments_while_a_thread_writes(tmp_path: Path) -> None:
    n, names = 40, listing(40)
    plain = contents(make_store(tmp_path / "plain", n, 2))
    store, generator, lives = tmp_path / "killed", np.random.default_rng(0), 0

    def life() -> None:
        with begin(store, names, 2) as writer:
            with AsyncWriter(writer) as behind:
                for k in writer.missing():
                    chunk = names[writer.rows(k)]
                    behind.put(k, chunk, features(chunk))
            writer.finish()

    while True:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                torch.set_num_threads(1)
                life()
                code = 0
            finally:
                os._exit(code)
        if lives < 6:
            time.sleep(float(generator.uniform(0.002, 0.03)))
            os.kill(child, signal.SIGKILL)
        lives += 1
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
        for file in store.glob("shards/*.safetensors"):
            assert plain[f"shards/{file.name}"] == file.read_bytes()
    assert contents(store) == plain


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file of this process grows past `size` bytes: what a full disk looks like, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_full_disk_is_said_and_whole_shards_are_kept(tmp_path: Path, layout: str, behind: bool) -> None:
    def work() -> None:
        torch.set_num_threads(1)
        with begin(tmp_path / "store", listing(10), layout=layout) as writer:
            write_shard(writer, 0, maps_only=layout == "npy")
            cause = r"cannot be written \(File too large\); whole shards are kept: make room, and repeat the command"
            with pytest.raises(ConfigurationError, match=f"{cause}: {COMMAND}"), small_files(100):
                if behind:
                    chunk = writer.listing[writer.rows(1)]
                    with AsyncWriter(writer) as thread:
                        thread.put(1, chunk, features(chunk, maps_only=layout == "npy"))
                else:
                    write_shard(writer, 1, maps_only=layout == "npy")
            assert not list((tmp_path / "store").rglob("*.tmp"))
            assert writer.missing() == [1, 2]

    assert forked(work) == 0
    plain = make_store(tmp_path / "plain", layout=layout)
    assert contents(make_store(tmp_path / "store", layout=layout)) == contents(plain)


def test_what_the_thread_cannot_write_is_raised_and_nobody_waits_for_ever(tmp_path: Path) -> None:
    names = listing(40)
    with begin(tmp_path / "store", names, 2) as writer:
        with pytest.raises(ValueError, match="each image"), AsyncWriter(writer, ahead=1) as behind:
            for k in writer.missing():
                chunk = names[writer.rows(k)]
                behind.put(k, ["no such"] if k == 1 else chunk, features(chunk))
        assert writer.missing()[0] == 1
        with pytest.raises(ValueError, match="each image"), AsyncWriter(writer) as behind:
            behind.put(3, [], {})  # the last: raised at the end
        with pytest.raises(KeyError), AsyncWriter(writer) as behind:
            raise KeyError


def test_ctrl_c_writes_what_waits_and_stays_a_ctrl_c(tmp_path: Path) -> None:
    names = listing(12)
    with begin(tmp_path / "store", names, 4) as writer:
        with pytest.raises(KeyboardInterrupt), AsyncWriter(writer) as behind:
            behind.put(0, names[:4], features(names[:4]))
            behind.put(1, names[4:8], features(names[4:8]))
            raise KeyboardInterrupt
        assert writer.missing() == [2]


def test_memory_is_bounded_by_the_queue(tmp_path: Path) -> None:
    gate, held = threading.Event(), []
    with begin(tmp_path / "store", listing(40), 2) as writer:
        real = writer.write
        writer.write = lambda *item: (gate.wait(), real(*item))[1]  # type: ignore[method-assign]

        def produce() -> None:
            with AsyncWriter(writer, ahead=2) as behind:
                for k in range(20):
                    chunk = writer.listing[writer.rows(k)]
                    held.append(k)
                    behind.put(k, chunk, features(chunk))

        producer = threading.Thread(target=produce)
        producer.start()
        time.sleep(0.2)
        assert len(held) == 4  # two wait, one is written, one is in the producer's hand
        gate.set()
        producer.join()
        assert len(held) == 20 and writer.missing() == []
