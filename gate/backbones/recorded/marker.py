"""Marker tensors: each entry says where it stands, so that whoever moves it about can be asked what went where."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FULL, HALF = 1 << 20, 16  # bases of the digits: whole numbers that survive the dtype, with room for a scaling
NEAR = 0.25  # how far from a whole number a digit may lie


class Marker:
    """Entries 0 ... count - 1 as digits, least significant first, and again counted backwards.

    Digits run from 1 to `base`, in `codes`, (count,) float64 each. What is counted both ways tells an entry from a
    constant that happens to look like one.
    """

    def __init__(self, count: int, dtype: torch.dtype) -> None:
        self.count = count
        self.base = FULL if dtype in (torch.float32, torch.float64) else HALF
        places = torch.arange(count)
        self.length = 1
        while self.base**self.length < count:
            self.length += 1
        self.codes = [*self._digits(places), *self._digits(count - 1 - places)]

    def _digits(self, places: Tensor) -> list[Tensor]:
        return [(places // self.base**d % self.base + 1).double() for d in range(self.length)]

    def __len__(self) -> int:
        return len(self.codes)

    def places(self, seen: Sequence[Tensor]) -> tuple[Tensor, float] | None:
        """Where each entry of what came back was in the marker, and with which sign; None: it is not all there.

        seen: what came of each code, flattened to (m,). Returns (m,) long, -1 for what never was in the marker. Each
        entry of the marker must be there once.
        """
        read = self._read(seen)
        if read is None:
            return None
        found, sign = read
        kept = found[found >= 0]
        return (found, sign) if len(kept) == self.count and len(set(kept.tolist())) == self.count else None

    def chosen(self, seen: Sequence[Tensor]) -> tuple[Tensor, float] | None:
        """The same where what came back is some of the marker, as it was or negated; None where it is not."""
        read = self._read(seen, scaled=False)
        if read is None or bool((read[0] < 0).any()) or len(set(read[0].tolist())) != len(read[0]):
            return None
        return read

    def _read(self, seen: Sequence[Tensor], scaled: bool = True) -> tuple[Tensor, float] | None:
        digits, sign = [], 1.0
        valid = torch.ones(seen[0].numel(), dtype=torch.bool)
        for value, code in zip(seen, self.codes, strict=True):
            flat = value.detach().double().flatten().cpu()
            peak = float(flat[flat.abs().argmax()])
            if not peak:
                return None
            sign = 1.0 if peak > 0 else -1.0
            scale = peak / float(code.max()) if scaled else sign
            read = flat / scale
            digits.append(read.round().long() - 1)
            valid &= (read - read.round()).abs() < NEAR
        forwards, backwards = self._sum(digits[: self.length]), self._sum(digits[self.length :])
        valid &= (forwards + backwards == self.count - 1) & (forwards >= 0) & (forwards < self.count)
        return torch.where(valid, forwards, torch.full_like(forwards, -1)), sign

    def _sum(self, digits: Sequence[Tensor]) -> Tensor:
        return torch.stack([digit * self.base**d for d, digit in enumerate(digits)]).sum(0)
