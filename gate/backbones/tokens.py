"""Which tokens of a transformer's tensors are the image's, and where in the image: read from the call itself.

The latent that a call is given has positions; its tokens are followed through the forward (`trail`), and what carries
their marks is the image. Of a packed latent, ids or shapes in the call say which tokens are the image that is denoised
(the first) and which a reference's. What cannot be told is told as such (`Untold`), never guessed from lengths.
"""

# long: from a call to the places of its image's tokens, in one place
from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gate.backbones.trail import NONE, Trail

TIMES = frozenset({"t", "timestep", "timesteps", "timestep_r", "r_timestep", "timestep_cond"})
IDS = ("img_ids", "latent_ids", "image_ids")
Array = np.ndarray[Any, Any]


class Untold(Exception):
    """Which tokens are the image's cannot be told; the text says why."""


@dataclass(frozen=True, eq=False)
class Pick:
    """An image's tokens in raster order along one dimension: where they lie.

    grid: rows and columns. start: of a run that all rows share; index: (b, n) where there is no such run.
    """

    grid: tuple[int, int]
    start: int = 0
    index: Tensor | None = None

    @property
    def count(self) -> int:
        return self.grid[0] * self.grid[1]

    def of(self, x: Tensor, dim: int) -> Tensor:
        """The image's tokens of x along `dim`; its first dimension counts rows."""
        if self.index is None:
            return x if x.shape[dim] == self.count else x.narrow(dim, self.start, self.count)
        return _gathered(x, dim, self.index)

    def rest(self, x: Tensor, dim: int) -> Tensor:
        """The other tokens, in their order."""
        n = x.shape[dim]
        if self.index is None:
            before, after = self.start, n - self.start - self.count
            if not before or not after:
                return x.narrow(dim, self.count if not before else 0, n - self.count)
            kept = [i for i in range(n) if not before <= i < before + self.count]
            return x.index_select(dim, torch.tensor(kept, device=x.device))
        others = [sorted({*range(n)} - {*row}) for row in self.index.tolist()]
        return _gathered(x, dim, torch.tensor(others))

    def laid(self, x: Tensor) -> Tensor:
        """Tokens (b, n, d) -> the image's as a map (b, d, h, w)."""
        return self.of(x, 1).transpose(1, 2).reshape(x.shape[0], x.shape[2], *self.grid)


def _gathered(x: Tensor, dim: int, index: Tensor) -> Tensor:
    shape = [1] * x.ndim
    shape[0], shape[dim] = index.shape
    wide = list(x.shape)
    wide[dim] = index.shape[1]
    return x.gather(dim, index.to(x.device).view(shape).expand(wide))


@dataclass
class Latent:
    """What a call says of the latent that it is given.

    tensors: it, or its rows. shape: of one row, where it is not packed; coordinates: (n, 2) row and column of every
    token where it is packed, -1 of what is not the image. why: what is not said. picks: for marks that were met before.
    """

    tensors: Sequence[Tensor]
    shape: tuple[int, ...] = ()
    coordinates: Array | None = None
    why: str = ""
    picks: dict[tuple[Any, ...], Pick] = field(default_factory=dict)

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Latent:
        """given: the arguments of a denoiser's call by name, the latent first."""
        x = next(iter(given.values()))
        if isinstance(x, (list, tuple)):
            rows = [row for row in x if isinstance(row, Tensor)]
            if len(rows) != len(x) or len({row.shape for row in rows}) != 1:
                return cls(rows, why="its latents are of several sizes")
            return cls(rows, tuple(rows[0].shape))
        if not isinstance(x, Tensor) or x.ndim < 3:
            return cls([], why="its first argument is no latent")
        if x.ndim > 3:
            return cls([x], tuple(x.shape[1:]))
        try:
            return cls([x], coordinates=_coordinates(x.shape[1], given))
        except Untold as error:
            return cls([x], why=str(error))

    def mark(self, trail: Trail) -> None:
        packed = len(self.tensors) == 1 and self.tensors[0].ndim == 3 and not self.shape
        for x in self.tensors:
            if packed:
                trail.mark_tokens(x)
            else:
                trail.mark(x, rows=x.ndim > len(self.shape))

    def pick(self, marks: Tensor) -> Pick:
        """Where the image's tokens lie. marks: of tokens, (b, n), NONE among them. Raises Untold."""
        if self.why:
            raise Untold(self.why)
        read = marks.cpu().numpy().astype(np.int64)
        key = read.shape, read.tobytes()
        if key not in self.picks:
            self.picks[key] = self._pick(read)
        return self.picks[key]

    def _pick(self, marks: Array) -> Pick:
        rows = [self._row(row) for row in marks]
        grid = rows[0][0]
        if any(row[0] != grid for row in rows):
            raise Untold("the rows of the batch hold different numbers of the image's tokens")
        index = np.stack([row[1] for row in rows])
        start = int(index[0, 0])
        if bool((index == np.arange(start, start + index.shape[1])).all()):
            return Pick(grid, start)
        return Pick(grid, index=torch.from_numpy(index))

    def _row(self, marks: Array) -> tuple[tuple[int, int], Array]:
        """(grid, places of its tokens in raster order) of one row."""
        places = np.flatnonzero(marks != NONE)
        at = self._at(marks[places])
        places, at = places[at[:, 0] >= 0], at[at[:, 0] >= 0]
        (ys, rows), (xs, columns) = (np.unique(at[:, axis], return_inverse=True) for axis in (0, 1))
        raster = rows * len(xs) + columns
        if not len(places) or len(np.unique(raster)) != len(places) or len(places) != len(ys) * len(xs):
            raise Untold(f"its {len(places)} tokens with a place in the latent make no grid")
        return (len(ys), len(xs)), places[raster.argsort()]

    def _at(self, marks: Array) -> Array:
        """(n, 2): row and column of entries of the latent, -1 of what is not the image."""
        if self.coordinates is not None:
            return self.coordinates[marks]
        axes = np.stack(np.unravel_index(marks, self.shape), axis=-1)
        varying = [axis for axis in range(axes.shape[1]) if len(np.unique(axes[:, axis])) > 1]
        last = [axes.shape[1] - 2, axes.shape[1] - 1]
        chosen = varying if len(varying) == 2 else last
        if not set(varying) <= set(chosen):
            raise Untold("the latent has several frames, and gate reads images")
        return axes[:, chosen]


def _coordinates(n: int, given: Mapping[str, Any]) -> Array:
    """Row and column of every packed token, (n, 2); -1 of a reference's. Raises Untold."""
    shapes = given.get("img_shapes")
    if shapes is not None:
        every = shapes if isinstance(shapes[0], (list, tuple)) else [shapes]
        if isinstance(every[0][0], (list, tuple)):
            if any(row[0] != every[0][0] for row in every):
                raise Untold("img_shapes differ between the rows of the batch")
            every = every[0]
        return _raster(n, [int(v) for v in every[0]], sum(int(np.prod(s)) for s in every))
    ids = next((given[word] for word in IDS if isinstance(given.get(word), Tensor)), None)
    if ids is not None:
        if ids.device.type == "meta":  # a sketch, which is square
            side = round(n**0.5)
            return _raster(n, (1, side, side), side * side)
        return _of_ids(n, ids)
    if all(isinstance(given.get(word), int) for word in ("num_frames", "height", "width")):
        size = [int(given[word]) for word in ("num_frames", "height", "width")]
        return _raster(n, size, int(np.prod(size)))
    raise Untold("nothing in the call says where its packed tokens lie")


def _raster(n: int, size: Sequence[int], told: int) -> Array:
    """The first `size` (frames, rows, columns) tokens are the image. told: of how many tokens the call knows."""
    if size[0] != 1:
        raise Untold("the latent has several frames, and gate reads images")
    if told != n:
        raise Untold(f"the call tells the places of {told} packed tokens and gives {n}")
    made = np.full((n, 2), -1)
    h, w = size[-2:]
    made[: h * w] = np.stack(np.divmod(np.arange(h * w), w), axis=-1)
    return made


def _of_ids(n: int, ids: Tensor) -> Array:
    """By ids (n, 3 or more): whose image, row, column. The first token's image is the one that is denoised."""
    rows = ids if ids.ndim == 3 else ids[None]
    if rows.shape[1] != n or rows.shape[2] < 3 or not bool((rows == rows[:1]).all()):
        raise Untold("the ids of its packed tokens are not theirs alone, or differ between rows")
    told = rows[0].double().cpu().numpy()
    made = told[:, 1:3] - told[:, 1:3].min(0)
    made[told[:, 0] != told[0, 0]] = -1
    own = made[made[:, 0] >= 0]
    if len(np.unique(own, axis=0)) != len(own):
        raise Untold("two of its packed tokens have the same ids")
    return np.unique(made, return_inverse=True)[1].reshape(made.shape) - int(bool((made < 0).any()))


Signature = tuple[Any, ...]


def signature(given: Mapping[str, Any], held: dict[int, tuple[Tensor, int, bytes]]) -> Signature:
    """What decides where a call's tokens lie: shapes, and what masks, ids and other whole numbers say; not the time.

    held: of values that were read before, so that a tensor is read again only where it is another or has changed.
    """
    found: list[Any] = []
    for name, value in given.items():
        if name in TIMES:
            continue
        for leaf in _leaves(value):
            if isinstance(leaf, Tensor):
                whole = not (leaf.is_floating_point() or leaf.is_complex())
                read = (whole or "mask" in name or "ids" in name) and leaf.device.type != "meta"
                found.append((name, leaf.shape, _digest(leaf, held) if read else b""))
            elif isinstance(leaf, (int, str)):
                found.append((name, leaf))
            else:
                found.append((name, type(leaf).__name__))
    return tuple(found)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, (list, tuple)):
        yield len(value)
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def _digest(x: Tensor, held: dict[int, tuple[Tensor, int, bytes]]) -> bytes:
    version = 0 if x.is_inference() else x._version
    known = held.get(id(x))
    if known is not None and known[0] is x and known[1] == version and not x.is_inference():
        return known[2]
    data = x.detach().cpu().contiguous()
    data = data.float() if data.dtype == torch.bfloat16 else data
    made = hashlib.blake2b(data.numpy().tobytes(), digest_size=16).digest()
    held[id(x)] = x, version, made
    return made
