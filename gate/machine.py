"""What is asked of the machine: cores to fork on, an allocator that keeps its memory, pages given back, memory left."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import mmap
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from gate.errors import OutOfMemoryError

T = TypeVar("T")

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # mallopt's parameters, from glibc's malloc.h
_LARGEST_BLOCK = 32 << 20  # the most that glibc accepts on 64 bits
# what torch says where it raises a plain RuntimeError: on a CPU, on Apple's GPU, from CUDA's own libraries
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "out of memory",
    "std::bad_alloc",
    "alloc_failed",
)


@functools.cache
def keep_freed_memory() -> bool:
    """Ask the allocator to keep what is freed, once per process. Returns whether it agreed; only glibc does.

    A forward pass allocates the same blocks again and again. glibc hands large freed blocks back to the kernel, and
    each new one is then zeroed page by page: measured on the tiny backbone, that takes longer than the arithmetic.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # a C library without mallopt: slower, and nothing else changes
        return False
    settings = ((_MMAP_THRESHOLD, _LARGEST_BLOCK), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)


@contextlib.contextmanager
def lean_fork() -> Iterator[None]:
    """What is forked within starts lean.

    Freed blocks are given back: a child that reuses one would copy garbage first. And its collector leaves alone what
    the parent made: it would copy every page of it to look for circles.
    """
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):  # a C library without malloc_trim
            ctypes.CDLL(None).malloc_trim(0)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def can_fork() -> bool:
    """Whether this process can fork safely: on Linux, not with the system libraries of others."""
    return hasattr(os, "sched_getaffinity") and "fork" in multiprocessing.get_all_start_methods()


def forkable_cores() -> int:
    """Cores that this process may use; 1 where it cannot fork."""
    return len(os.sched_getaffinity(0)) if can_fork() else 1


def release(mapped: Any) -> None:
    """Let go of the pages of a mapped array; the file keeps what they hold. An array in memory stays as it is."""
    pages = getattr(mapped, "_mmap", None)
    if isinstance(pages, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)


def halving(
    work: Callable[[int], T], batch: int, what: str, fix: str, *, log: Callable[[str], None] = lambda _: None
) -> T:
    """work(batch); where memory runs out, again with half of it, and so on. log: is told of each half.

    what: that does not fit, and fix: what to do about it, for the sentence. Raises OutOfMemoryError at a batch of one,
    and whatever else the work raises.
    """
    while True:
        try:
            return work(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if batch == 1:
                raise OutOfMemoryError(
                    f"{what} does not fit into memory even at batch size 1; {fix}."
                ) from error
        batch //= 2  # out of the handler: its error holds the frames, and their tensors
        log(f"out of memory in {what}: going on with batches of {batch}")


@contextlib.contextmanager
def one_fits(what: str) -> Iterator[None]:
    """Work that no batch makes smaller: memory that runs out within becomes an OutOfMemoryError that says `what`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"Memory ran out in {what}; use a smaller --image-size, --dtype float16, or --offload."
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, a GPU's or the machine's: a smaller batch may do."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    said = str(error).lower()
    return any(text in said for text in _NO_MEMORY)
