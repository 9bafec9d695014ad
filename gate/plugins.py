"""Plug-ins found through entry points, and who holds which name; a broken one is listed, never fatal.

Names are claimed in this order: ours before strangers'; a plug-in's own name before variants, those before old names;
then by distribution and target. What holds a name keeps it, broken or not, so neither the order on the path nor what a
later package brings changes what a name means. Own names are read without importing anything, which is why they come
before variants: a stranger is found by its own name without its neighbours.
"""

from __future__ import annotations

import contextlib
import functools
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import FrameType
from typing import Any, Literal, TypeVar

from gate.errors import PluginError
from gate.names import heads, name_problem
from gate.technique import Technique

T = TypeVar("T")
PluginKind = Literal["technique", "probe", "metric"]
GROUPS: dict[PluginKind, str] = {
    "technique": "gate.techniques",
    "probe": "gate.probes",
    "metric": "gate.metrics",
}
OURS = "gate-screen"
OUR_PACKAGES = frozenset({"gate", "techniques", "probes"})


@dataclass(frozen=True)
class Plugin:
    """An entry point and what came of loading it. distribution: who ships it; error: why it is broken, "" if not."""

    name: str
    kind: PluginKind
    target: str
    distribution: str
    cls: type[Any] | None
    error: str = ""


@dataclass(frozen=True)
class Claim:
    """A name and what stands behind it: a plug-in with settings. now: the name in use, where `name` is an old one."""

    name: str
    plugin: Plugin
    settings: Mapping[str, Any]
    now: str = ""

    @property
    def role(self) -> str:
        """What the name is to its plug-in, in words."""
        of = f"{self.plugin.target} of {self.plugin.distribution}"
        if self.now:
            return f"an old name of {of}"
        return of if self.name == self.plugin.name else f"a variant of {of}"


def plugins(kind: PluginKind) -> dict[str, Plugin]:
    """Every plug-in that holds its own name, broken ones included, by name in order. Imports all of them."""
    held = {c.name: c.plugin for c in claims(kind).values() if c.name == c.plugin.name}
    return dict(sorted(held.items()))


def refused(kind: PluginKind) -> tuple[Plugin, ...]:
    """Claims to a name that someone else holds, each with an error that names both. Imports every plug-in."""
    return _ledger(kind)[1]


def claims(kind: PluginKind) -> dict[str, Claim]:
    """Who holds which name: own names, variants and old names. Imports every plug-in."""
    return _ledger(kind)[0]


def find_claim(kind: PluginKind, name: str) -> Claim | None:
    """Who holds a name, by as few imports as it takes: a stranger's module for its own name, all for an unknown one."""
    own, strangers = _points(kind)
    for points in (own, strangers):
        if points is strangers and name in (ours := _ledger(kind, strangers=False)[0]):
            return ours[name]
        for point in points:
            if point.name == name:
                return Claim(name, _load(kind, point), {})
    return claims(kind).get(name)


def is_ours(cls: type[Any]) -> bool:
    """Whether a class is shipped with gate: strangers' are watched more closely."""
    return cls.__module__.partition(".")[0] in OUR_PACKAGES


def forget() -> None:
    """Look at the path anew: for tests, and for whoever installs a package while running."""
    for cached in (_points, _load, _ledger):
        cached.cache_clear()


@functools.cache
def _points(kind: PluginKind) -> tuple[tuple[EntryPoint, ...], tuple[EntryPoint, ...]]:
    """Entry points of ours and of strangers, in order of claim; one seen twice on the path counts once."""
    every = {(_distribution(p), p.value, p.name): p for p in entry_points(group=GROUPS[kind])}
    in_order = [every[key] for key in sorted(every)]
    ours = tuple(p for p in in_order if _distribution(p) == OURS)
    return ours, tuple(p for p in in_order if _distribution(p) != OURS)


def _distribution(point: EntryPoint) -> str:
    try:
        return re.sub(r"[-_.]+", "-", point.dist.name).lower()  # type: ignore[union-attr]
    except Exception:  # none, or one whose metadata is damaged: importlib raises this and that
        return "unknown"


@functools.cache
def _ledger(kind: PluginKind, *, strangers: bool = True) -> tuple[dict[str, Claim], tuple[Plugin, ...]]:
    """Who holds which name, and the claims that came too late."""
    held: dict[str, Claim] = {}
    late: list[Plugin] = []
    for points in _points(kind) if strangers else _points(kind)[:1]:
        mine = []
        for point in points:  # what comes too late is not imported, so neither are its variants known
            if point.name in held:
                unloaded = Plugin(point.name, kind, point.value, _distribution(point), None)
                late.append(_late(Claim(point.name, unloaded, {}), held[point.name]))
                continue
            held[point.name] = Claim(point.name, _load(kind, point), {})
            mine.append(held[point.name].plugin)
        for further in (_variants, _old_names) if kind == "technique" else ():
            for claim in (c for plugin in mine if plugin.cls for c in further(plugin.cls, plugin)):
                if held.setdefault(claim.name, claim) is not claim:
                    late.append(_late(claim, held[claim.name]))
    return held, tuple(late)


def _variants(cls: type[Technique], plugin: Plugin) -> Iterator[Claim]:
    for name, settings in cls.variants.items():
        yield Claim(name, plugin, dict(settings))


def _old_names(cls: type[Technique], plugin: Plugin) -> Iterator[Claim]:
    for name, now in cls.aliases.items():
        yield Claim(name, plugin, dict(cls.variants.get(now, {})), now)


def _late(claim: Claim, holder: Claim) -> Plugin:
    error = f"{claim.name!r} is {holder.role}, so it cannot be {claim.role} too; rename one or uninstall one"
    plugin = claim.plugin
    return Plugin(claim.name, plugin.kind, plugin.target, plugin.distribution, None, error)


@functools.cache
def _load(kind: PluginKind, point: EntryPoint) -> Plugin:
    error, cls = name_problem(point.name), None
    if not error:
        cls, error = tried(lambda: _loaded(kind, point))
    return Plugin(point.name, kind, point.value, _distribution(point), None if error else cls, error)


def tried(load: Callable[[], T]) -> tuple[T | None, str]:
    """What a stranger's module gives, or why it gives nothing. It may raise anything, SystemExit and KeyboardInterrupt
    too; the user's own Ctrl-C alone is passed on. What it prints goes to stderr: stdout is the table's."""
    with _pressed() as pressed, contextlib.redirect_stdout(sys.stderr):
        try:
            return load(), ""
        except BaseException as raised:
            if isinstance(raised, KeyboardInterrupt) and pressed:
                raise
            if isinstance(raised, PluginError):
                return None, str(raised)
            return None, " ".join(f"{type(raised).__name__}: {raised}".split())


@contextlib.contextmanager
def _pressed() -> Iterator[list[int]]:
    """The interrupts that came from outside meanwhile, told apart from a module that raises the same."""
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield pressed
        return

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _loaded(kind: PluginKind, point: EntryPoint) -> type[Any]:
    """The class that an entry point names. Raises PluginError where it is no plug-in of this kind."""
    cls = point.load()
    if not isinstance(cls, type):
        raise PluginError(f"{point.value} is no class")
    base = base_class(kind)
    if not issubclass(cls, base):
        raise PluginError(f"{point.value} does not derive from gate.{base.__name__}")
    name = getattr(cls, "name", "")
    if problem := class_problem(cls):
        raise PluginError(problem)
    if name != point.name:
        raise PluginError(f"{point.value} calls itself {name!r} but is registered as {point.name!r}")
    return cls


def class_problem(cls: type[Any]) -> str:
    """What is wrong with a plug-in's name and facts; "" if nothing is. What an instance computes is not looked at."""
    if problem := name_problem(getattr(cls, "name", "")):
        return problem
    for fact, kind, example in _FACTS:
        value = getattr(cls, fact, kind())
        if not isinstance(value, (kind, property)):
            return f"{fact} must be {example}, got {value!r}"
    return _names_problem(cls) if issubclass(cls, Technique) else ""


_FACTS: tuple[tuple[str, type[Any], str], ...] = (
    ("summary", str, "one line of text"),
    ("source", str, "a text"),
    ("leak", str, 'a text, "" where there is none'),
)


def base_class(kind: PluginKind) -> type[Any]:
    """What every plug-in of a kind derives from."""
    if kind == "technique":
        return Technique
    if kind == "metric":
        from gate.metric import Metric

        return Metric
    from gate.probe import Probe

    return Probe


def _names_problem(cls: type[Technique]) -> str:
    """What is wrong with a technique's further names."""
    variants, aliases, compositions = cls.variants, cls.aliases, cls.compositions
    for fact in ("needs", "families"):
        value = getattr(cls, fact)
        if not isinstance(value, (Set, property)):
            return f"{fact} must be a set of names, as in frozenset({{'unet'}}), got {value!r}"
    if not isinstance(cls.neutral, (Mapping, property, type(None))):
        return f"neutral must map settings to values, or be None, got {cls.neutral!r}"
    if not isinstance(variants, Mapping) or not all(isinstance(s, Mapping) for s in variants.values()):
        return (
            f"variants must map names to settings, as in {{'strong': {{'strength': 1.0}}}}, got {variants!r}"
        )
    if not isinstance(aliases, Mapping):
        return f"aliases must map old names to new ones, got {aliases!r}"
    if isinstance(compositions, str) or not isinstance(compositions, Iterable):
        return f"compositions must be a tuple of names with '+', got {compositions!r}"
    if isinstance(getattr(cls, "control", None), bool):
        return "the fact `control` is called `negative_control` now; without it, a control could win"
    for further in (*variants, *aliases):
        if problem := name_problem(further):
            return f"among its variants and aliases {problem}"
    for now in aliases.values():
        if now != cls.name and now not in variants:
            return f"aliases lead to {now!r}, which is neither {cls.name!r} nor one of its variants"
    for composition in compositions:
        if not isinstance(composition, str):
            return f"the composition {composition!r} is no text"
        heads(composition)  # raises, in a sentence, where it does not read
    return ""
