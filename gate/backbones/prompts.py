"""Prompts that were encoded already, kept up to a number of bytes."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor

from gate.backbones.recorded.call import leaves
from gate.request import Conditioning

LIMIT = 64 << 20  # bytes: 270 prompts of Stable Diffusion 1.5, 16 of Flux


class Prompts:
    """Conditionings of one row by their text; past `limit` bytes the one that was asked for longest ago goes.

    forgets: what is gone was not taken away by a technique (`gate.intact`).
    """

    forgets: ClassVar[bool] = True

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit, self.bytes = limit, 0
        self._kept: OrderedDict[str, Conditioning] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def rows(
        self, prompts: Sequence[str], encode: Callable[[Sequence[str]], dict[str, Conditioning]]
    ) -> list[Conditioning]:
        """One row per prompt, in order. encode: called once, with the distinct prompts that are not here, if any."""
        found = {p: self._kept[p] for p in dict.fromkeys(prompts) if p in self._kept}
        new = [p for p in dict.fromkeys(prompts) if p not in found]
        found |= encode(new) if new else {}
        for prompt in dict.fromkeys(prompts):
            self._keep(prompt, found[prompt])
        return [found[p] for p in prompts]

    def _keep(self, prompt: str, encoded: Conditioning) -> None:
        if prompt in self._kept:
            self._kept.move_to_end(prompt)
            return
        self._kept[prompt] = encoded
        self.bytes += size_of(encoded)
        while self.bytes > self.limit:  # one that is larger than the limit alone is not kept
            self.bytes -= size_of(self._kept.popitem(last=False)[1])


def size_of(conditioning: Conditioning) -> int:
    """Bytes that its tensors hold in memory: a slice holds all that it was cut from."""
    values = {f.name: getattr(conditioning, f.name) for f in dataclasses.fields(conditioning)}
    told = [value for row in conditioning.told for _, value in leaves((row.args, row.kwargs))]
    storages = [v.untyped_storage() for v in (*values.values(), *told) if isinstance(v, Tensor)]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())
