"""Calls of the denoiser: counted at itself, and made once where the passes of a screening share them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gate.request import CutResponse, Request, Response

if TYPE_CHECKING:
    from gate.backbone import Backbone

MEMO_BYTES = 256 << 20  # of answers that are kept; what does not fit is computed again
UNREAD = frozenset({"eps", "batch", "seed", "origin", "features", "outputs"})  # by a denoiser, of a request
SECONDS = "seconds"  # beside an answer's tensors in its file


class Counter:
    """A hook that adds up the rows that go through a module."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.rows += len(args[0] if args else next(iter(kwargs.values())))


@contextlib.contextmanager
def counted(backbone: Backbone) -> Iterator[Counter]:
    """Counts the rows that go through the denoiser itself, whoever calls it."""
    counter = Counter()
    handle = backbone.denoiser.register_forward_pre_hook(counter, with_kwargs=True)
    try:
        yield counter
    finally:
        handle.remove()


class Untouched:
    """Whether a module is as it was when this was made: its parts, attributes, hooks and processors are the very same
    objects, and no tensor was written to. Counters are not seen. What it cannot see is a write through `Tensor.data`;
    a technique that changes weights says so by `attach`."""

    def __init__(self, root: nn.Module) -> None:
        first, *inner = root.modules()
        self.root, self.before = first, _without_counters(first)
        self.held = [(m, type(m), {k: _copy(v) for k, v in vars(m).items()}) for m in inner]
        self.tensors = [t for t in (*root.parameters(), *root.buffers()) if not t.is_inference()]
        self.versions = [t._version for t in self.tensors]
        self.attention = functional.scaled_dot_product_attention

    def holds(self) -> bool:
        """A millisecond for a thousand modules: equality of dictionaries asks for identity first."""
        if functional.scaled_dot_product_attention is not self.attention or _modes():
            return False
        if [t._version for t in self.tensors] != self.versions:
            return False
        try:
            if _without_counters(self.root) != self.before:
                return False
            return all(type(m) is cls and vars(m) == before for m, cls, before in self.held)
        except (
            RuntimeError,
            TypeError,
            ValueError,
        ):  # something else stands there, and it cannot be compared
            return False


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, dict) else value


def _without_counters(module: nn.Module) -> dict[str, Any]:
    found = {k: _copy(v) for k, v in vars(module).items()}
    counters = [i for i, hook in module._forward_pre_hooks.items() if isinstance(hook, Counter)]
    for table, i in itertools.product(("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"), counters):
        found[table].pop(i, None)
    return found


def _modes() -> bool:
    """Whether something stands between torch's functions and their kernels."""
    functions, dispatch = torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()
    return bool(functions or dispatch or torch.is_autocast_cpu_enabled() or torch.is_autocast_enabled())


@dataclass(frozen=True, eq=False)
class Kept:
    """An answer: the prediction (None of a call that was cut), the features where they were asked for, and seconds."""

    prediction: Tensor | None
    features: dict[str, Tensor]
    seconds: float


class Memo:
    """Answers of the untouched denoiser that techniques of one screening share, by the very inputs of the call.

    Who is answered is charged as if it had made the call: `rows` and `seconds` add up what was saved. Predictions are
    kept, and features of a pass's `own` request alone: others rarely come again, and are large. limit: bytes that are
    kept. folder: where answers lie as files, so that processes share them; in memory where None. keeping: whether new
    answers are kept; not those of a stranger's technique, whose denoiser may be changed in ways that nobody sees.
    """

    def __init__(self, backbone: Backbone, limit: int = MEMO_BYTES, folder: Path | None = None) -> None:
        self.limit, self.folder = limit, folder
        self.rows, self.seconds, self.held = 0, 0.0, 0
        self.own: Request | None = None
        self.keeping = True
        self.answers: dict[str, Kept] = {}
        self.untouched = Untouched(backbone.denoiser)

    @contextlib.contextmanager
    def serving(self, backbone: Backbone) -> Iterator[None]:
        """For a while, the backbone's calls are answered from here where they can be."""
        backbone.recall = self.answer
        try:
            yield
        finally:
            backbone.recall = None

    def answer(
        self,
        request: Request,
        layers: Sequence[str],
        make: Callable[[Request, Sequence[str]], Response],
    ) -> Response:
        """The kept answer to an equal request; else make it, and keep it."""
        if request.residuals or torch.is_grad_enabled() or not self.untouched.holds():
            return make(request, layers)
        key = digest(request)
        kept = self._find(key)
        cut = bool(layers) and not request.outputs
        serves = kept is not None and (cut or kept.prediction is not None)
        if kept is not None and serves and all(layer in kept.features for layer in layers):
            self.rows += len(request.x_t)
            self.seconds += kept.seconds
            # copies: who is answered may write into the answer, and what is kept with a tensor ends with it
            # (`gate.metric.kept`)
            features = {k: kept.features[k].clone() for k in layers}
            if cut or kept.prediction is None:
                return CutResponse(features)
            prediction = kept.prediction.clone()
            x0 = request.batch.backbone.schedule.x0_from(prediction, request.x_t, request.t)
            return Response(prediction, x0, features)
        began = time.perf_counter()
        response = make(request, layers)
        if kept is None or not serves or request is self.own:
            seconds = time.perf_counter() - began
            features = response.features if request is self.own else {}
            self._keep(key, None if cut else response.prediction, features, seconds)
        return response

    def _find(self, key: str) -> Kept | None:
        if self.folder is None or key in self.answers:
            return self.answers.get(key)
        from safetensors.torch import load_file

        file = self.folder / key
        if not file.is_file():
            return None
        tensors = load_file(file)
        seconds, prediction = float(tensors.pop(SECONDS)), tensors.pop("", None)
        return Kept(prediction, tensors, seconds)

    def _keep(
        self, key: str, prediction: Tensor | None, features: Mapping[str, Tensor], seconds: float
    ) -> None:
        tensors = {**({} if prediction is None else {"": prediction}), **features}
        size = sum(t.nbytes for t in tensors.values())
        held = self.held if self.folder is None else _bytes_in(self.folder)
        if not self.keeping or held + size > self.limit:
            return
        self.held += size
        if self.folder is None:
            copies = {layer: value.clone() for layer, value in features.items()}
            self.answers[key] = Kept(None if prediction is None else prediction.clone(), copies, seconds)
            return
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        draft = self.folder / f"{key}.{os.getpid()}"
        contents = {name: t.contiguous() for name, t in tensors.items()}
        try:
            save_file({**contents, SECONDS: torch.tensor(seconds, dtype=torch.float64)}, draft)
            draft.replace(self.folder / key)  # whole or not at all: another process may be reading
        except (OSError, SafetensorError):  # the disk is full: calls are made instead of kept
            self.limit = 0
            draft.unlink(missing_ok=True)


def _bytes_in(folder: Path) -> int:
    """Of whole answers: drafts, which have a dot in their names, may go while they are looked at."""
    return sum(f.stat().st_size for f in os.scandir(folder) if "." not in f.name)


def digest(request: Request) -> str:
    """Of everything that the denoiser is given: whatever field a request or its conditioning has, now or later."""
    made = hashlib.blake2b(digest_size=16)
    _feed(
        made, {f.name: getattr(request, f.name) for f in dataclasses.fields(request) if f.name not in UNREAD}
    )
    return made.hexdigest()


def _feed(made: Any, value: Any) -> None:
    """Whatever lies in a request, with its structure. Raises TypeError for what cannot be told apart by its bytes."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        made.update(f"{data.dtype}{tuple(data.shape)}".encode())
        made.update(data.flatten().view(torch.uint8).numpy().tobytes() if data.numel() else b"")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _feed(made, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    elif isinstance(value, Mapping):
        for key in sorted(value):
            made.update(f"{key}=".encode())
            _feed(made, value[key])
    elif isinstance(value, (tuple, list)):
        made.update(f"[{len(value)}".encode())
        for item in value:
            _feed(made, item)
    elif value is None or isinstance(value, (str, int, float, bool)):
        made.update(f"{value!r};".encode())
    else:
        raise TypeError(f"a request holds a {type(value).__name__}, which has no bytes to compare")
