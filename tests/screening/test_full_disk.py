"""A disk that is full at any write, any byte and of any size loses nothing, and is told in a sentence."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import sys
from pathlib import Path

import pytest

from tests.forked import FLAGS, Outcome, _one_figure, _sound, at_the, finish, gate, in_a_fork, same

__all__ = ["_one_figure", "_sound"]
pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, limits and mounts of Linux"),
    pytest.mark.usefixtures("one_figure"),
]


def full(run: Path, code: int, text: str) -> None:
    """One sentence, and what it says is true."""
    assert code == 3 and len(text.splitlines()) == 1 and "cannot be written (" in text, (code, text)
    assert text.rstrip().endswith((f"gate resume {run}", "repeat the command", "choose another --output."))
    assert f"gate resume {run}" in text or not run.exists()


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_write_loses_nothing(tmp_path: Path, sound: Path) -> None:
    def refuse() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    refused = 0
    for nth in range(1, 100):
        run = tmp_path / f"run-{nth}"

        def work(nth: int = nth, run: Path = run) -> tuple[int, str, bool]:
            seen = at_the(nth, "fsync", refuse)
            return (*gate("screen", *FLAGS.split(), "--output", run), seen["calls"] < nth)

        code, text, untouched = in_a_fork(work)
        if untouched:
            break
        refused += 1
        parts = {p.name for p in run.glob("parts/*.safetensors")}
        if not (run / "results.json").is_file():
            full(run, code, text)
        else:
            assert code == 0 and "2 techniques on tiny" in text  # only figures are missing
        assert not list(run.rglob("*.tmp"))
        code, text = finish(run)
        assert code == 0 and same(run, sound), (nth, text, parts)
        shutil.rmtree(run)
    assert refused >= 8


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_at_any_byte_loses_nothing(tmp_path: Path, sound: Path) -> None:
    """RLIMIT_FSIZE: the system itself cuts a write short, in the middle of every file of a run."""
    sizes = {f.stat().st_size for f in sound.rglob("*") if f.is_file()}
    limits = sorted({0, 1, 100, 1000} | {s - 1 for s in sizes} | {30_000, max(sizes)})
    codes = []
    for limit in limits:
        run = tmp_path / str(limit)

        def work(limit: int = limit, run: Path = run) -> Outcome:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            return gate("screen", *FLAGS.split(), "--output", run)

        code, text = in_a_fork(work)
        codes.append(code)
        if not (run / "results.json").is_file():
            full(run, code, text)
        assert not list(run.rglob("*.tmp"))
        code, text = finish(run)
        assert code == 0 and same(run, sound), (limit, text)
        shutil.rmtree(run)
    assert codes[0] == 3 and codes[-1] == 0 and set(codes) == {0, 3}


NEW_USER, NEW_MOUNTS, REMOUNT, PRIVATE = 0x10000000, 0x00020000, 32, (1 << 18) | (1 << 14)


def mount(place: Path, size: int, flags: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", str(place).encode(), b"tmpfs", flags, f"size={size}".encode()):
        raise OSError(ctypes.get_errno(), "mount")


def small_disk(place: Path) -> None:
    """From here on this process, and no other, sees an empty file system there; its size is set by `mount`."""
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    if libc.unshare(NEW_USER | NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path(f"/proc/self/{name}").write_text(text, encoding="ascii")
    libc.mount(b"none", b"/", None, PRIVATE, None)


def possible(place: Path) -> bool:
    try:
        small_disk(place)
        mount(place, 4096)
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_a_disk_of_a_few_kilobytes_loses_nothing(tmp_path: Path, sound: Path) -> None:
    """A file system of 4 KiB to 1 MiB, a page larger each time where it matters, which is then given room."""

    no_room(tmp_path)
    codes = []
    for kib in (8, 16, 64, 164, 220, 300, 380, 460, 1024):
        disk, run = tmp_path, tmp_path / "run"

        def work(kib: int = kib, disk: Path = disk, run: Path = run) -> tuple[int, str, bool, int, str, bool]:
            small_disk(disk)
            mount(disk, kib << 10)
            code, text = gate("screen", *FLAGS.split(), "--output", run)
            finished = (run / "results.json").is_file()
            mount(disk, 64 << 20, REMOUNT)
            again, told = finish(run)
            return code, text, finished, again, told, same(run, sound)

        outcome = in_a_fork(work)
        assert outcome is not None, kib
        code, text, finished, again, told, equal = outcome
        codes.append(code)
        if not finished:
            assert code == 3 and len(text.splitlines()) == 1 and "cannot be written (" in text, (kib, text)
        assert again == 0 and equal, (kib, told)
    assert codes[0] == 3 and codes[-1] == 0


def no_room(tmp_path: Path) -> None:
    if not in_a_fork(lambda: possible(tmp_path)):
        pytest.skip("no file systems of its own for this user")


def test_a_shelf_on_a_full_disk_is_an_error_and_no_dead_process(tmp_path: Path) -> None:
    """A mapped file without room kills whoever writes to it (SIGBUS), so the room is reserved before."""
    no_room(tmp_path)

    def work() -> str:
        import torch

        from gate.screening.shelf import NoRoomError, Shelf

        small_disk(tmp_path)
        mount(tmp_path, 64 << 10)
        try:
            Shelf(64, folder=tmp_path, limit=0).put(slice(0, 64), torch.zeros(64, 4096))
        except NoRoomError as error:
            return error.strerror or ""
        return "written"

    assert in_a_fork(work) == os.strerror(errno.ENOSPC)


@pytest.mark.slow
def test_a_disk_that_is_full_while_measuring_ends_the_screening_and_blames_no_technique(
    tmp_path: Path, sound: Path
) -> None:
    run = tmp_path / "run"

    def work() -> Outcome:
        from gate.screening import measured, shelf

        reserve = shelf._reserve

        def full(file: int, size: int) -> None:
            if list(run.glob("parts/*.safetensors")):  # vanilla's had room, the next technique's has none
                raise shelf.NoRoomError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            reserve(file, size)

        shelf._reserve, measured.IN_MEMORY = full, 0  # maps of probes go to the disk
        return gate("screen", *FLAGS.split(), "--output", run)

    full(run, *in_a_fork(work))
    assert len(list(run.glob("parts/*.safetensors"))) == 1
    code, text = finish(run)
    assert code == 0 and same(run, sound), text
