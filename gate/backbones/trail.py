"""A latent's entries, followed through a forward: which entry of the latent each entry of a tensor comes from.

Marks are tensors of whole numbers beside the data. What moves entries about (cat, slices, reshapes, masks) moves the
marks alike; what works token by token (linear layers, norms, sums) keeps a token's mark; attention gives its queries'.
What mixes tokens otherwise, or is not known here, ends the trail: a mark is never made up.
"""

# long: one rule for each kind of function that a denoiser is made of
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

NONE = 2**31 - 1  # the mark of what is no entry of the latent; the largest, so that a minimum finds an entry

# functions of torch by name, without underscores at the ends
MOVES = frozenset(
    {
        *("cat", "concat", "concatenate", "stack", "hstack", "vstack", "chunk", "split", "split_with_sizes"),
        *(
            "tensor_split",
            "unbind",
            "getitem",
            "narrow",
            "select",
            "index_select",
            "gather",
            "take_along_dim",
        ),
        *(
            "masked_select",
            "reshape",
            "view",
            "view_as",
            "reshape_as",
            "flatten",
            "unflatten",
            "permute",
            "transpose",
        ),
        *("swapaxes", "swapdims", "t", "movedim", "moveaxis", "squeeze", "unsqueeze", "expand", "expand_as"),
        *(
            "broadcast_to",
            "repeat",
            "tile",
            "repeat_interleave",
            "flip",
            "roll",
            "pixel_shuffle",
            "pixel_unshuffle",
        ),
        *("unfold", "where", "masked_scatter", "masked_fill", "pad", "pad_sequence"),
    }
)
JOINS = frozenset({"cat", "concat", "concatenate", "stack"})
SUMS = frozenset(
    {
        *(
            "add",
            "radd",
            "iadd",
            "sub",
            "rsub",
            "isub",
            "mul",
            "rmul",
            "imul",
            "div",
            "rdiv",
            "truediv",
            "rtruediv",
        ),
        *("itruediv", "true_divide", "addcmul", "addcdiv", "lerp", "maximum", "minimum"),
    }
)
PRODUCTS = frozenset({"matmul", "bmm", "mm", "baddbmm"})
MIXES = frozenset({"cumsum", "cumprod", "sort", "argsort", "topk", "einsum", "interpolate"})
IDLE = frozenset(
    {"get", "set", "dim", "size", "numel", "is_floating_point", "is_complex", "stride", "data_ptr"}
)


class Trail(TorchFunctionMode):
    """While it is on, marks follow the data. Functions run as ever, on the same arguments."""

    def __init__(self) -> None:
        super().__init__()
        self._marks: Any = WeakTensorKeyDictionary()

    def mark(self, x: Tensor, first: int = 0, *, rows: bool = True) -> None:
        """Number the entries of a latent. rows: whether its first dimension counts rows, which are numbered alike.

        first: what the numbers begin at.
        """
        device = torch.device("cpu") if x.device.type == "meta" else x.device
        shape = x.shape[1:] if rows else x.shape
        marks = torch.arange(first, first + shape.numel(), dtype=torch.int32, device=device).view(shape)
        self._marks[x] = marks.expand(x.shape) if rows else marks

    def mark_tokens(self, x: Tensor) -> None:
        """Number the tokens of a packed latent, (b, n, c)."""
        device = torch.device("cpu") if x.device.type == "meta" else x.device
        marks = torch.arange(x.shape[1], dtype=torch.int32, device=device)
        self._marks[x] = marks[:, None].expand(x.shape)

    def tokens(self, x: Tensor, dim: int = -1) -> Tensor | None:
        """The mark of every token, the smallest over `dim`: (b, n) of (b, n, d). None where nothing is marked."""
        marks = self._marks.get(x)
        if marks is None or marks.shape != x.shape:
            return None
        read: Tensor = _slim(marks).amin(dim).expand(x.select(dim, 0).shape)
        return read if bool((read != NONE).any()) else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        made = func(*args, **given)
        name = str(getattr(func, "__name__", "")).strip("_")
        if name not in IDLE:
            try:
                self._follow(name, func, args, given, made)
            except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError, AttributeError):
                self._lose(made)  # the forward goes on; what cannot be followed is refused where it is read
        return made

    def _follow(self, name: str, func: Any, args: Any, kwargs: Any, made: Any) -> None:
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        if not any(x in self._marks for x in tensors):
            return
        if name in ("setitem", "copy"):
            self._write(args)
        elif name in ("where", "masked_fill") and _unread(args):
            self._keep(
                name, tensors, args, kwargs, made
            )  # of a mask's two sides in a sketch, the one with marks
        elif (name in MOVES or _permutes(name, args)) and not any(isinstance(x, torch.dtype) for x in args):
            self._move(name, func, args, kwargs, made)
        elif isinstance(made, Tensor):
            self._keep(name, tensors, args, kwargs, made)
        else:
            self._lose(made)

    def _keep(self, name: str, tensors: Sequence[Tensor], args: Any, kwargs: Any, made: Tensor) -> None:
        marks = self._of_tokens(name, tensors, args, kwargs, made)
        if marks is None or not (made.is_floating_point() or made.is_complex()):
            self._lose(made)
        else:
            self._marks[made] = marks.expand(made.shape)

    def _lose(self, made: Any) -> None:
        for x in tree_flatten(made)[0]:
            if isinstance(x, Tensor):
                self._marks.pop(x, None)

    def _shadow(self, x: Any) -> Any:
        """An argument's marks; whole numbers and truth values, such as indices and masks, stay as they are."""
        if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
            return x
        return self._marks[x] if x in self._marks else _nothing(x)

    def _write(self, args: Any) -> None:
        """x[where] = value, or x.copy_(value). In a sketch nobody knows where a mask is true: nothing is written."""
        x, value = args[0], args[-1]
        if _unread(args[1:-1]):
            return
        marks = self._shadow(x).clone(memory_format=torch.contiguous_format)
        new: Any = self._shadow(value) if isinstance(value, Tensor) else NONE
        if len(args) == 3:
            marks[args[1]] = new
        else:
            marks = new.expand(x.shape)
        self._marks[x] = marks

    def _move(self, name: str, func: Any, args: Any, kwargs: Any, made: Any) -> None:
        shadows, named = tree_map(self._shadow, args), tree_map(self._shadow, dict(kwargs))
        if name == "pad" and (kwargs.get("mode") or (args[2:3] or ("constant",))[0]) == "constant":
            shadows, named = shadows[:2], {**named, "mode": "constant", "value": NONE}
        elif name == "pad_sequence":
            side = {"padding_side": args[3]} if len(args) > 3 else {}
            shadows, named = shadows[:2], {**named, **side, "padding_value": NONE}
        elif name in ("where", "masked_fill"):  # a number that is put in comes from nowhere
            shadows = [
                NONE if isinstance(x, (int, float)) and not isinstance(x, bool) else x for x in shadows
            ]
            if name == "masked_fill" and isinstance(shadows[2], Tensor):
                shadows[2] = NONE
        moved = _joined(func, shadows, named, made) if name in JOINS else func(*shadows, **named)
        pairs = zip(tree_flatten(made)[0], tree_flatten(moved)[0], strict=True)
        for x, marks in pairs:
            if isinstance(x, Tensor) and marks.shape == x.shape:
                self._marks[x] = _even(marks)

    def _of_tokens(
        self, name: str, tensors: Sequence[Tensor], args: Any, kwargs: Any, made: Tensor
    ) -> Tensor | None:
        """The marks of what is computed token by token; None where it is not, or not known to be."""
        if name in PRODUCTS:
            return self._product(tensors[-2], tensors[-1], made)
        if name in SUMS or name in ("where", "masked_fill"):
            found = [self._marks[x] for x in tensors if x in self._marks]
            return _agreed(found, made.shape)
        first = tensors[0]
        marks = self._marks.get(first)
        if marks is None or name in MIXES or name.startswith(("new_", "fft")) or name.endswith("_like"):
            return None
        if name.startswith("conv"):
            return _strided(marks, made, args, kwargs)
        if name == "view_as_complex":
            return marks[..., 0]
        if name in ("sum", "mean") and made.shape == first.shape[:-1]:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            return _slim(marks).amin(-1) if dim in (-1, first.ndim - 1) else None
        if name == "view_as_real":
            return marks[..., None]
        if made.shape == first.shape and name != "linear":
            return marks
        if made.ndim and made.shape[:-1] == first.shape[:-1]:
            return _slim(marks).amin(-1, keepdim=True).expand(*first.shape[:-1], 1)
        return None

    def _product(self, a: Tensor, b: Tensor, made: Tensor) -> Tensor | None:
        """Of a matrix product: rows are a's and columns b's, where what is summed over is of one token each."""
        rows, columns = self._marks.get(a), self._marks.get(b)
        found = None
        if columns is not None and _one(columns, -2):
            found = columns[..., :1, :]
        if rows is not None and _one(rows, -1):
            found = rows[..., :1]
        return None if found is None else found.expand(made.shape)


def _permutes(name: str, args: Any) -> bool:
    """Whether an einsum is one tensor's dimensions in another order."""
    if name != "einsum" or not args or not isinstance(args[0], str) or "->" not in args[0]:
        return False
    before, after = args[0].replace(" ", "").split("->")
    return sorted(before) == sorted(after) and before.isalpha()


def _joined(func: Any, args: Any, kwargs: Mapping[str, Any], made: Tensor) -> Tensor:
    """Marks side by side: what repeats itself in all of them, such as a token's features, is joined once."""
    parts, dim = list(args[0]), int(kwargs.get("dim", args[1] if len(args) > 1 else 0))
    joined = dim % made.ndim if made.ndim == parts[0].ndim else None
    cut = tuple(
        slice(0, 1)
        if axis != joined
        and len({p.shape[axis] for p in parts}) == 1
        and not any(p.stride(axis) for p in parts)
        else slice(None)
        for axis in range(parts[0].ndim)
    )
    thin = [part[cut] for part in parts]
    if joined == made.ndim - 1 and not any(part.stride(-1) for part in parts):  # features beside features
        ones = [part[..., :1] for part in thin]
        if all(torch.equal(one, ones[0]) for one in ones):
            return ones[0].expand(made.shape)
    whole: Tensor = func(thin, dim=dim)
    return whole.expand(made.shape)


def _unread(args: Any) -> bool:
    """Whether an index or a mask is there by its shape alone."""
    return any(
        isinstance(x, Tensor) and x.device.type == "meta" and not x.is_floating_point()
        for x in tree_flatten(args)[0]
    )


def _nothing(x: Tensor) -> Tensor:
    device = torch.device("cpu") if x.device.type == "meta" else x.device
    return torch.full((), NONE, dtype=torch.int32, device=device).expand(x.shape)


def _slim(marks: Tensor) -> Tensor:
    """One of each where a dimension repeats itself: nothing is computed twice. Kept dimensions have size 1."""
    cut = [slice(0, 1) if n > 1 and step == 0 else slice(None) for n, step in _sizes(marks)]
    return marks[tuple(cut)]


def _sizes(marks: Tensor) -> Any:
    return zip(marks.shape, marks.stride(), strict=True)


def _even(marks: Tensor) -> Tensor:
    """The same marks, of one for each token where all of its features have the same."""
    if marks.ndim < 3 or marks.shape[-1] < 2 or marks.stride(-1) == 0 or not _one(marks, -1):
        return marks
    return _slim(marks[..., :1]).clone().expand(marks.shape)


def _one(marks: Tensor, dim: int) -> bool:
    """Whether all marks along a dimension are the same."""
    slim = _slim(marks)
    return slim.shape[dim] == 1 or bool((slim == slim.narrow(dim, 0, 1)).all())


def _agreed(found: Sequence[Tensor], shape: torch.Size) -> Tensor | None:
    """The marks of a sum: those of its terms, where they agree; no entry's where they do not."""
    made = found[0]
    for other in found[1:]:
        if other is made:
            continue
        a, b = made.expand(shape), other.expand(shape)
        cut = tuple(
            slice(0, 1) if n > 1 and i == j == 0 else slice(None)
            for n, i, j in zip(shape, a.stride(), b.stride(), strict=True)
        )
        a, b = a[cut], b[cut]
        made = torch.where((a == b) | (b == NONE), a, torch.where(a == NONE, b, NONE)).expand(shape)
    return made


def _strided(marks: Tensor, made: Tensor, args: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
    """Of a convolution, (b, c, ...): the entry where each window begins, or lies about."""
    stride = kwargs.get("stride", args[3] if len(args) > 3 else 1)
    steps = [stride] * (made.ndim - 2) if isinstance(stride, int) else [int(s) for s in stride]
    steps *= made.ndim - 2 if len(steps) == 1 else 1
    slim: Tensor = marks.amin(1, keepdim=True)[
        (slice(None), slice(None), *(slice(None, None, s) for s in steps))
    ]
    if any(have < want for have, want in zip(slim.shape[2:], made.shape[2:], strict=True)):
        return None
    return slim[(slice(None), slice(None), *(slice(0, n) for n in made.shape[2:]))]
