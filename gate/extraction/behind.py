"""Shards are written behind the arithmetic: a bounded queue, and one thread that empties it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from types import TracebackType

from gate.extraction.shard import Features
from gate.extraction.store import StoreWriter

_Item = tuple[int, Sequence[str], Features, Sequence[tuple[str, str]]]


class AsyncWriter:
    """Writes shards while the next are computed; a context manager.

    At most `ahead` + 2 shards are in memory: those that wait, the one that is written, and the one that `put` holds.
    What the thread could not write is raised by the next `put`, or at the end; what waited when the body was left,
    however it was left, is written first. Make one in each process that writes. written: called on the thread with
    (k, rows) after each shard.
    """

    def __init__(
        self, writer: StoreWriter, *, ahead: int = 2, written: Callable[[int, int], None] | None = None
    ) -> None:
        self.writer, self.written = writer, written or (lambda k, rows: None)
        self._waiting: queue.Queue[_Item | None] = queue.Queue(maxsize=ahead)
        self._failed: BaseException | None = None
        self._raised = False
        # a daemon: where Ctrl-C comes twice the process may end, and a shard is written in one move
        self._thread = threading.Thread(target=self._empty, name="gate-writer", daemon=True)

    def put(
        self, k: int, names: Sequence[str], features: Features, skipped: Sequence[tuple[str, str]] = ()
    ) -> None:
        """As `StoreWriter.write`, later; waits while the queue is full. The tensors must not be written to again.

        Raises what the thread could not write.
        """
        self._check()
        self._waiting.put((k, names, features, skipped))
        self._check()

    def __enter__(self) -> AsyncWriter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.put(None)
        self._thread.join()
        if self._failed is None or self._raised:
            return
        if error is None or isinstance(error, Exception):
            raise self._failed from error
        error.__context__ = self._failed  # an interruption stays one

    def _check(self) -> None:
        if self._failed is not None:
            self._raised = True
            raise self._failed

    def _empty(self) -> None:
        """Until None comes. After a failure the rest is taken and dropped, so that nobody waits for room for ever."""
        while (item := self._waiting.get()) is not None:
            if self._failed is not None:
                continue
            try:
                self.writer.write(*item)
                self.written(item[0], len(item[1]))
            except BaseException as error:  # raised where the caller is
                self._failed = error
            item = None  # or the last shard would stay in memory while the queue is empty
