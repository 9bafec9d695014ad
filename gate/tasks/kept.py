"""What an evaluation leaves behind: task.json, counts and heads seed by seed, results.json. All in one move each."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from gate.errors import ConfigurationError
from gate.runs.directory import one_move, plain, write_json
from gate.tasks.amalgamation import Amalgam, save_amalgam
from gate.tasks.task import Array

BEGAN, DONE = "task.json", "results.json"


@dataclass(frozen=True)
class Kept:
    """A folder, or None where nothing is kept."""

    folder: Path | None

    @classmethod
    def open(cls, folder: Path | None, facts: Mapping[str, Any]) -> Kept:
        """A new folder, or that of the very same evaluation, which then goes on.

        Raises ConfigurationError where it is another's, or cannot be written.
        """
        if folder is None:
            return cls(None)
        facts, began = plain(facts), folder / BEGAN
        try:
            if began.is_file():
                if json.loads(began.read_text(encoding="utf-8")) != facts:
                    raise ConfigurationError(
                        f"{folder} holds another evaluation (other settings, data or weights); choose another output."
                    )
            elif folder.is_dir() and any(folder.iterdir()):
                raise ConfigurationError(
                    f"{folder} is not empty and holds no evaluation; choose another output."
                )
            (folder / "counts").mkdir(parents=True, exist_ok=True)
            (folder / "heads").mkdir(exist_ok=True)
            write_json(began, facts)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{folder} cannot be used ({error}); choose another output.") from error
        return cls(folder)

    def counts(self, arm: str, seed: int) -> Array | None:
        """Those of a head that was judged already."""
        file = self._file("counts", arm, seed, ".npy")
        if file is None or not file.is_file():
            return None
        try:
            found: Array = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ConfigurationError(
                f"{file} is damaged ({error}); remove it, and it is made again."
            ) from error
        return found

    def checkpoint(self, arm: str, seed: int) -> Path | None:
        """Where a training in progress is kept."""
        return self._file("heads", arm, seed, ".checkpoint")

    def keep(
        self,
        arm: str,
        seed: int,
        counts: Array,
        head: nn.Module,
        facts: Mapping[str, Any],
        learned: Sequence[Mapping[str, Tensor]],
    ) -> None:
        """A head and its counts; the counts come last, and the checkpoint goes. learned: by the techniques."""
        if self.folder is None:
            return
        state = {name: value.detach().contiguous() for name, value in head.state_dict().items()}
        weights = self._file("heads", arm, seed, ".safetensors")
        table = self._file("counts", arm, seed, ".npy")
        assert weights is not None and table is not None
        if state:
            from safetensors.torch import save_file

            with one_move(weights) as temporary:
                save_file(state, temporary)
        stem = getattr(head, "stem", None)
        if isinstance(stem, Amalgam):
            save_amalgam(stem, weights.with_name(weights.stem + ".amalgam.safetensors"), facts, learned)
        with one_move(table) as temporary, temporary.open("wb") as stream:
            np.save(stream, counts, allow_pickle=False)
        checkpoint = self.checkpoint(arm, seed)
        if checkpoint is not None and checkpoint.is_file():
            os.unlink(checkpoint)

    def finish(self, result: Mapping[str, Any]) -> None:
        """results.json."""
        if self.folder is not None:
            write_json(self.folder / DONE, {"schema_version": 1, **result})

    def _file(self, kind: str, arm: str, seed: int, ending: str) -> Path | None:
        if self.folder is None:
            return None
        if arm.startswith("amalgamation of "):
            arm = "amalgamation"
        return self.folder / kind / f"{re.sub(r'[^A-Za-z0-9+@=._-]', '_', arm)}-{seed}{ending}"
