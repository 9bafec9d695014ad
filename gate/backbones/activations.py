"""The one primitive under everything else: named activations of an unmodified denoiser, through forward hooks."""

# long: one primitive: hooks, what they keep, and when they end a forward
from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gate.backbones.aliases import canonical
from gate.backbones.following import Following, tensors_of
from gate.backbones.layers import FUSED, MEAN_MAP, cross_maps, layer_paths, resolve_layers
from gate.backbones.maps import Attention, mean_map
from gate.errors import ConfigurationError, UsageError


class Features(dict[str, Tensor]):
    """{layer id: activation}; aliases are understood as keys too."""

    def __missing__(self, name: str) -> Tensor:
        layer = canonical(name, dict.fromkeys(self, ""))
        if layer in self:
            return self[layer]
        raise KeyError(name)


class Captured(Features):
    """The activations of the latest forward.

    calls: forwards so far. steps: {number of the forward, from 0: its activations}, of those that were asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.steps: dict[int, Features] = {}


class _Reached(Exception):
    """All that is wanted is there: what called the denoiser need not wait for the rest of its forward."""


@contextlib.contextmanager
def capture(
    denoiser: nn.Module,
    layers: str | Iterable[str] | Mapping[str, str | bool],
    *,
    steps: Collection[int] | str = (),
    strict: bool = True,
    stop: bool = False,
) -> Iterator[Captured]:
    """Activations of any diffusers denoiser that you call: in your own loop, or inside a pipeline that generates.

    layers: ids, aliases and presets (`gate list layers`), {id: True}, or {name: place} (layers.py). Yields what each
    forward fills anew, {id: (b, c, h, w)}; maps are (b, heads, positions, keys). With guidance, b is twice the batch.
    steps: which forwards to keep besides, counted from 0, or "all": `seen.steps[3]["up1"]`.
    strict: whether a layer that a forward does not reach is an error (ConfigurationError). stop: end the forward once
    all are there, and the block with it: nothing after the call is run. What is captured is the same to the last bit.
    A transformer's tokens are those of the image that is denoised, as the call itself says where they lie (tokens.py);
    where it does not, ConfigurationError. Forwards of other threads and of copies are not captured. Nothing in the
    denoiser is changed; hooks go when the block ends. Inside the block torch.compile waits: what it has compiled calls
    no hooks. Only where a map is wanted are softmax weights computed, beside the attention and not in its place.
    Raises UsageError for an unknown layer.
    """
    denoiser = getattr(denoiser, "_orig_mod", denoiser)  # what torch.compile wrapped
    if not isinstance(denoiser, nn.Module):
        raise UsageError(
            f"gate.capture takes the denoiser itself, such as pipe.unet, pipe.transformer or backbone.denoiser, not a "
            f"{type(denoiser).__name__}."
        )
    if isinstance(steps, str) and steps != "all":
        raise UsageError(f'steps are numbers of forwards, such as [0, 10], or "all"; not {steps!r}.')
    paths: dict[str, str] = {}
    if isinstance(layers, Mapping) and all(isinstance(path, str) for path in layers.values()):
        paths.update({layer: str(path) for layer, path in layers.items()})
        ours = hasattr(denoiser, "down_blocks") and f":{MEAN_MAP}" not in paths.values()
        known = {} if ours else layer_paths(denoiser)  # of a UNet nothing else is asked
    else:
        known = layer_paths(denoiser)
        wanted = [k for k, v in layers.items() if v] if isinstance(layers, Mapping) else layers
        paths.update({layer: known[layer] for layer in resolve_layers(wanted, known)})
    watch = _Watch(denoiser, paths, known, steps, strict)
    try:
        with _uncompiled(denoiser):
            watch.hook(stop)
            yield watch.seen
    except _Reached:
        pass
    finally:
        watch.unhook()
    if watch.elsewhere and not watch.seen.calls:
        raise UsageError(
            "Every forward ran in another thread than the one that opened gate.capture; open it in the thread that "
            "calls the denoiser."
        )


@contextlib.contextmanager
def _uncompiled(denoiser: nn.Module) -> Iterator[None]:
    """For a while, what torch.compile has compiled or would compile runs as it is written."""
    if "torch._dynamo" not in sys.modules:  # whatever is compiled went through it
        yield
        return
    compiled = any(m._compiled_call_impl is not None or "_orig_mod" in m._modules for m in denoiser.modules())
    if compiled:
        warnings.warn("gate.capture runs this denoiser without torch.compile while it is open.", stacklevel=4)
    with _EAGER:
        yield


class _Eager:
    """Keeps torch.compile waiting from the first block that is entered to the last that is left, in whatever order.

    The stance is the process's own: blocks of several threads that each put back what they found would leave it behind.
    """

    def __init__(self) -> None:
        self.lock, self.blocks, self.stance = threading.Lock(), 0, contextlib.ExitStack()

    def __enter__(self) -> None:
        with self.lock:
            if not self.blocks:
                self.stance.enter_context(torch.compiler.set_stance("force_eager"))
            self.blocks += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.blocks -= 1
            if not self.blocks:
                self.stance.close()


_EAGER = _Eager()


class _Watch:
    """The hooks of one capture, what they keep, and what is known of the running forward."""

    def __init__(
        self,
        denoiser: nn.Module,
        paths: Mapping[str, str],
        known: Mapping[str, str],
        steps: Collection[int] | str,
        strict: bool,
    ) -> None:
        self.denoiser, self.paths, self.steps, self.strict = denoiser, paths, steps, strict
        self.seen, self.maps = Captured(), dict[str, Tensor]()
        self.crosses = cross_maps(known) if f":{MEAN_MAP}" in paths.values() else []
        self.following = Following(denoiser, known.values())
        self.handles: list[Any] = []
        self.thread, self.elsewhere, self.running = threading.get_ident(), False, False

    # hooks

    def hook(self, stop: bool) -> None:
        self._on(self.denoiser, self._start, before=True)
        for layer, path in self.paths.items():
            if path == f":{MEAN_MAP}":
                for place in self.crosses:
                    self._watch(place, place, self.maps)
            elif path != ":in":
                self._watch(path, layer, self.seen)
        if stop:
            for place in {*self.paths.values(), *self.crosses} - {f":{MEAN_MAP}", ""}:
                where, _, what = place.partition(":")
                self._on(self.denoiser.get_submodule(where), self._check, before=what == "in")
        self._on(self.denoiser, self._finish)
        self._on(self.denoiser, self._end, always=True)

    def unhook(self) -> None:
        self._end()
        for handle in self.handles:
            handle.remove()

    def _on(
        self, module: nn.Module, act: Callable[..., None], *, before: bool = False, always: bool = False
    ) -> None:
        """Have `act` called with what the module is given, (args, kwargs), and, not before it runs, with what it made.

        Only in forwards of this module in this thread: a copy of it has copies of the hooks, and a checkpoint runs
        blocks again in a backward.
        """

        def called(own: nn.Module, args: Any, kwargs: Any, *made: Any) -> None:
            if own is not module:
                _forget(own, called)
            elif threading.get_ident() != self.thread:
                self.elsewhere = True
            elif self.running or act == self._start:
                act(args, kwargs, *made)

        if before:
            self.handles.append(module.register_forward_pre_hook(called, with_kwargs=True))
        else:
            self.handles.append(module.register_forward_hook(called, with_kwargs=True, always_call=always))

    def _watch(self, path: str, layer: str, into: dict[str, Tensor]) -> None:
        """Hooks that put what is at a place into `into[layer]`."""
        where, _, what = path.partition(":")
        module = self.denoiser.get_submodule(where) if where else self.denoiser
        if what == "in":

            def given(args: Any, kwargs: Any) -> None:
                named = [kwargs["hidden_states"]] if "hidden_states" in kwargs else []
                self._keep(into, layer, path, tensors_of((*args, *named, *kwargs.values())), 0)

            self._on(module, given, before=True)
        elif what in FUSED:

            def fused(_: Any, __: Any, made: Tensor) -> None:
                self._keep(into, layer, path, [made.chunk(3, dim=-1)[FUSED.index(what)]], 0)

            self._on(module, fused)
        elif not what:
            first = (
                "to_q" in module._modules
            )  # of an attention the image's stream comes first, of a block last

            def output(_: Any, __: Any, made: Any) -> None:
                tensors = tensors_of(made)
                self._keep(
                    into, layer, path, tensors, 0 if first or _ends_without(made) else len(tensors) - 1
                )

            self._on(module, output)
        else:
            self._watch_map(module, path, layer, into)

    def _watch_map(self, module: nn.Module, path: str, layer: str, into: dict[str, Tensor]) -> None:
        running: list[Attention] = []

        def enter(*_: Any) -> None:
            running.append(Attention())
            running[-1].__enter__()  # type: ignore[no-untyped-call]

        def leave(_: Any, __: Any, made: Any) -> None:
            if not running:
                return
            mode = running.pop()
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            if made is None:
                return  # the attention itself failed; its own error is on its way
            with self.following.apart():
                where, _, what = path.partition(":")
                weights = self.following.weights(path, what, mode, where)
            if weights is not None:
                into[layer] = weights

        self._on(module, enter, before=True)
        self._on(module, leave, always=True)

    # what they do

    def _start(self, args: Any, kwargs: Any) -> None:
        self._end()
        self.seen.clear()
        self.maps.clear()
        self.running = True
        wanted = [*self.paths.values(), *self.crosses]
        given = self.following.start(wanted, args, kwargs)
        for layer, path in self.paths.items():
            if path == ":in":
                self._keep(self.seen, layer, path, given, 0)

    def _keep(
        self, into: dict[str, Tensor], layer: str, path: str, tensors: list[Tensor], chosen: int
    ) -> None:
        with self.following.apart():
            kept = self.following.laid(path, tensors, chosen)
        if kept is not None:
            into[layer] = kept

    def _check(self, *_: Any) -> None:
        layers = [layer for layer, path in self.paths.items() if path != f":{MEAN_MAP}"]
        if all(layer in self.seen for layer in layers) and all(place in self.maps for place in self.crosses):
            self._finish()
            raise _Reached

    def _finish(self, *_: Any) -> None:
        self.following.done()
        for layer, path in self.paths.items():
            if path == f":{MEAN_MAP}" and self.maps:
                self.seen[layer] = mean_map(list(self.maps.values()), self.following.grid)
        missing = [layer for layer in self.paths if layer not in self.seen]
        if self.strict and missing:
            raise ConfigurationError(self._reason(missing))
        if self.steps == "all" or self.seen.calls in self.steps:
            self.seen.steps[self.seen.calls] = Features(self.seen)
        self.seen.calls += 1

    def _reason(self, missing: list[str]) -> str:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        place = self.paths[missing[0]]
        why = self.following.untold.get(place) or next(
            (
                self.following.untold[p]
                for p in self.crosses
                if place == f":{MEAN_MAP}" and p in self.following.untold
            ),
            "",
        )
        if why:
            return (
                f"Which tokens of {missing[0]}{more} are the image's cannot be told from this call: {why}. Choose "
                "layers that are maps by themselves, or hook the module yourself."
            )
        return (
            f"The forward went past {missing[0]}{more}: it did not call that module. Leave the layer out; a denoiser "
            "that was exported or compiled ahead of time does not call its modules one by one."
        )

    def _end(self, *_: Any) -> None:
        self.running = False
        self.following.end()


def _forget(module: nn.Module, hook: Any) -> None:
    """Take a hook off a copy of the module that it was made for."""
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for number in [number for number, other in hooks.items() if other is hook]:
            del hooks[number]


def _ends_without(made: Any) -> bool:
    return isinstance(made, (tuple, list)) and bool(made) and not isinstance(made[-1], Tensor)
