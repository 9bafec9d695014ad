"""One running forward: which of a module's tensors is the image's, and its tokens as a map.

A UNet's tokens are all the image's. A transformer's are followed (`trail`) in the first call of its kind; in later ones
the places found then are used again, as long as the denoiser's modules are the same.
"""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gate.backbones.layers import MEAN_MAP
from gate.backbones.maps import Attention, as_map
from gate.backbones.tokens import Latent, Pick, Untold, signature
from gate.backbones.trail import Trail

KINDS = 64  # of calls whose places are kept for a denoiser
# {place: {number of its module's call in the forward: (which tensor, its tokens, a map's keys)}}
Places = dict[str, dict[int, tuple[int, Pick | None, Pick | None]]]
# {kind of call: (places, {place: why its tokens cannot be told})}
_Kinds = OrderedDict[Any, tuple[Places, dict[str, str]]]
_KNOWN: weakref.WeakKeyDictionary[nn.Module, _Kinds] = weakref.WeakKeyDictionary()


class Following:
    """What is known of the forwards of one denoiser. grid: of the latent's positions or tokens, for maps' shapes.

    layers: places that are the image's own; at others, what has no tokens of it stays as it is. untold: {place: why its
    tokens cannot be told}, of the running forward.
    """

    def __init__(self, denoiser: nn.Module, layers: Iterable[str]) -> None:
        self.denoiser, self.layers = denoiser, frozenset(layers)
        self.joint = not hasattr(denoiser, "down_blocks")
        self.grid: tuple[int, int] = (1, 1)
        self.untold: dict[str, str] = {}
        self.trail: Trail | None = None
        self.latent = Latent([])
        self.places: Places = {}
        self._kind: Any = ()
        self._new: frozenset[str] = frozenset()
        self._calls: dict[str, int] = {}
        self._held: dict[int, Any] = {}
        self._saves = False
        self._stamp = _stamp(denoiser) if self.joint else ()

    def start(self, wanted: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """A forward begins. Returns the latent's tensors. wanted: the places that will be asked for."""
        names = list(inspect.signature(type(self.denoiser).forward).parameters)[1:]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        first = names[0] if names[0] in given else next(iter(given))
        given = {first: given.pop(first), **given}
        self.untold, self._calls = {}, {}
        self._saves = torch.is_grad_enabled() and any(
            getattr(module, "gradient_checkpointing", False) for module in self.denoiser.modules()
        )
        tensors = tensors_of(given[first])
        if not self.joint:
            self.grid = int(tensors[0].shape[-2]), int(tensors[0].shape[-1])
            return tensors[:1]
        self._kind = self._stamp, signature(given, self._held)
        places, untold = _KNOWN.get(self.denoiser, _Kinds()).get(self._kind, ({}, {}))
        self.places, self.untold = dict(places), dict(untold)
        new = {place for place in wanted if place not in places and place != f":{MEAN_MAP}"}
        if new:
            self.places |= {place: {} for place in new}
            self.latent, self.trail = Latent.read(given), Trail()
            self.latent.mark(self.trail)
            self.trail.__enter__()  # type: ignore[no-untyped-call]
        self._new = frozenset(new)
        for found in self.places.values():
            for _, pick, _ in found.values():
                self.grid = self.grid if pick is None else pick.grid
        return _stacked(given[first], tensors)

    def done(self) -> None:
        """The forward has come to its end: what was found is known from now on."""
        if self.trail is not None:
            every = _KNOWN.setdefault(self.denoiser, _Kinds())
            every[self._kind] = self.places, self.untold
            every.move_to_end(self._kind)
            while len(every) > KINDS:
                every.popitem(last=False)

    def end(self) -> None:
        if self.trail is not None:
            trail, self.trail = self.trail, None
            trail.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """What is computed here is no part of the forward: neither followed nor counted by a checkpoint."""
        with contextlib.ExitStack() as stack:
            if self.trail is not None:
                stack.enter_context(torch._C.DisableTorchFunction())
            if self._saves:
                stack.enter_context(torch.autograd.graph.saved_tensors_hooks(Tensor.detach, _itself))
            yield

    def laid(self, place: str, tensors: Sequence[Tensor], chosen: int) -> Tensor | None:
        """The image's tensor of several, its tokens (b, n, d) as a map (b, d, h, w); other shapes as they are.

        chosen: which one, where it is not told by whose tokens are in it. None: this call of the module was not the
        image's, or its tokens cannot be told.
        """
        if not tensors:
            raise TypeError(f"{place or 'The denoiser'} gave no tensor.")
        if not self.joint:
            tensor = tensors[chosen]
            laid = as_map(tensor, self.grid)
            return laid if laid.ndim == 4 and tensor.ndim == 3 else tensor.clone()
        number = self._calls[place] = self._calls.get(place, -1) + 1
        if self.trail is not None and place in self._new:
            self._find(place, number, tensors, chosen)
        found = self.places[place].get(number)
        if found is None:
            return None
        which, pick, _ = found
        return tensors[which].clone() if pick is None else pick.laid(tensors[which])

    def _find(self, place: str, number: int, tensors: Sequence[Tensor], chosen: int) -> None:
        """Note where the image's tokens lie in what a module gave."""
        assert self.trail is not None
        order = sorted(range(len(tensors)), key=lambda i: i != chosen)
        why = "none of them carries a mark of the latent"
        for which in order:
            marks = self.trail.tokens(tensors[which]) if tensors[which].ndim == 3 else None
            if marks is None:
                continue
            try:
                pick = self.latent.pick(marks)
            except Untold as error:
                why = str(error)
                continue
            self.grid = pick.grid
            self.places[place][number] = which, pick, None
            self.untold.pop(place, None)
            return
        foreign = place not in self.layers and why.startswith("none")
        if tensors[chosen].ndim != 3 or foreign:
            self.places[place][number] = chosen, None, None
        elif not self.places[place]:
            self.untold[place] = why

    def weights(self, place: str, what: str, mode: Attention, where: str) -> Tensor | None:
        """Softmax weights (b, heads, positions, keys) of the attention that `mode` looked at; of the image's tokens.

        what: `map`, of the image's keys, else of all; `self-map` of the image's; `cross-map` of the others.
        """
        made = mode.weights(where)
        if not self.joint:
            return made
        number = self._calls[place] = self._calls.get(place, -1) + 1
        if self.trail is not None and place in self._new:
            self._find_map(place, number, mode)
        found = self.places[place].get(number)
        if found is None:
            return None
        _, queries, keys = found
        made = made if queries is None else queries.of(made, 2)
        if what == "cross-map":
            return made.clone() if keys is None else keys.rest(made, 3)
        return made if keys is None else keys.of(made, 3)

    def _find_map(self, place: str, number: int, mode: Attention) -> None:
        assert self.trail is not None and mode.seen is not None
        given = dict(zip(("query", "key"), mode.seen[0], strict=False)) | mode.seen[1]
        queries, keys = (self.trail.tokens(given[word]) for word in ("query", "key"))
        if queries is None:
            self.untold[place] = "no query carries a mark of the latent"
            return
        try:
            picks = [None if marks is None else self.latent.pick(marks[:, 0]) for marks in (queries, keys)]
        except Untold as error:
            self.untold[place] = str(error)
            return
        assert picks[0] is not None
        self.grid = picks[0].grid
        self.places[place][number] = 0, picks[0], picks[1]


def tensors_of(made: Any) -> list[Tensor]:
    """The tensors in what a module takes or gives, in order."""
    if hasattr(made, "sample"):
        made = made.sample
    if isinstance(made, Tensor):
        return [made]
    if isinstance(made, Mapping):
        made = tuple(made.values())
    if isinstance(made, tuple) and len(made) == 1 and isinstance(made[0], list):
        made = made[0]
    return _stacked(
        made, [x for x in made if isinstance(x, Tensor)] if isinstance(made, (tuple, list)) else []
    )


def _stacked(made: Any, tensors: list[Tensor]) -> list[Tensor]:
    """A list with a tensor (c, 1, h, w) for each row is one tensor."""
    if isinstance(made, list) and tensors and all(isinstance(x, Tensor) and x.ndim == 4 for x in made):
        return [torch.stack(made).squeeze(2)]
    return tensors


def _itself(x: Tensor) -> Tensor:
    return x


def _stamp(denoiser: nn.Module) -> int:
    """What a forward is made of: classes of modules and processors, replaced forwards, hooks inside."""
    inside = [hook for module in denoiser.children() for m in module.modules() for hook in _hooks(m)]
    kinds = [
        (
            type(m),
            id(vars(m).get("forward")),
            type(vars(m).get("processor")),
            type(m._modules.get("processor")),
        )
        for m in denoiser.modules()
    ]
    return hash((tuple(kinds), tuple(inside)))


def _hooks(module: nn.Module) -> list[int]:
    return [*module._forward_hooks, *module._forward_pre_hooks]
