"""Techniques, probes and metrics by name, found through entry points; a broken plug-in is listed, never fatal."""

from __future__ import annotations

import ast
import dataclasses
import fnmatch
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from gate.composition import Composition
from gate.errors import GateError, PluginError, UsageError, unknown_name
from gate.technique import Technique

Kind = Literal["technique", "probe", "metric"]
GROUPS: dict[Kind, str] = {"technique": "gate.techniques", "probe": "gate.probes", "metric": "gate.metrics"}


@dataclass(frozen=True)
class Plugin:
    """An entry point and what came of loading it. distribution: who ships it; error: why it is broken, "" if not."""

    name: str
    kind: Kind
    target: str
    distribution: str
    cls: type[Any] | None
    error: str = ""


@functools.cache
def plugins(kind: Kind) -> dict[str, Plugin]:
    """Every plug-in of a kind by name, in order of name."""
    found: dict[str, Plugin] = {}
    for point in sorted(entry_points(group=GROUPS[kind]), key=lambda p: (p.name, p.value)):
        if point.name in found and found[point.name].target == point.value:
            continue  # the same distribution seen twice on the path
        plugin = _load(kind, point)
        if point.name in found:
            both = f"{found[point.name].target} and {point.value} both claim the name {point.name!r}"
            plugin = Plugin(
                point.name, kind, point.value, plugin.distribution, None, f"{both}; uninstall one"
            )
        found[point.name] = plugin
    return found


def _load(kind: Kind, point: EntryPoint) -> Plugin:
    distribution = point.dist.name if point.dist else "unknown"
    try:
        cls = point.load()
        name = getattr(cls, "name", "")
        if not isinstance(cls, type) or not name:
            raise TypeError(f"{point.value} is not a {kind} class with a name")
        if kind == "technique" and not issubclass(cls, Technique):
            raise TypeError(f"{point.value} does not derive from gate.Technique")
        if name != point.name:
            raise TypeError(f"{point.value} calls itself {name!r} but is registered as {point.name!r}")
    except (
        Exception
    ) as error:  # whatever a stranger's module raises: it is shown in `gate list`, and refused on use
        return Plugin(point.name, kind, point.value, distribution, None, f"{type(error).__name__}: {error}")
    return Plugin(point.name, kind, point.value, distribution, cls)


@dataclass(frozen=True)
class TechniqueName:
    """A name that can be screened: the class behind it and the settings that make it."""

    name: str
    cls: type[Technique]
    settings: dict[str, Any]


@functools.cache
def technique_names() -> dict[str, TechniqueName]:
    """Every technique and variant that loads, by name."""
    names: dict[str, TechniqueName] = {}
    for plugin in plugins("technique").values():
        if plugin.cls is None:
            continue
        names[plugin.name] = TechniqueName(plugin.name, plugin.cls, {})
        for variant, settings in plugin.cls.variants.items():
            names.setdefault(variant, TechniqueName(variant, plugin.cls, dict(settings)))
    return names


def everything() -> tuple[str, ...]:
    """The names of `--techniques all`: listed techniques and variants, then the compositions they declare."""
    names = technique_names()
    single = [n for n, t in names.items() if t.settings or t.cls.listed]
    composed = dict.fromkeys(c for t in names.values() for c in t.cls.compositions)
    return tuple(single) + tuple(c for c in composed if all(_head(p) in names for p in _split(c, "+")))


def list_techniques(pattern: str = "*") -> list[str]:
    """Names of techniques, variants and the compositions of `all` that match a wildcard pattern."""
    known = list(dict.fromkeys([*technique_names(), *everything()]))
    return [n for n in known if fnmatch.fnmatchcase(n, pattern)]


def create_technique(name: str, **settings: Any) -> Technique:
    """A technique by name: `prompt`, `guidance-cfg`, `freeu[b1=1.2,s1=0.9]`, `prompt+noise-ensemble`."""
    parts = _split(name, "+")
    if len(parts) > 1:
        if settings:
            raise UsageError(
                f"Settings of {name} belong in brackets, as in {parts[0]}[setting=value]+{parts[1]}."
            )
        return Composition(parts=tuple(create_technique(p) for p in parts))
    head, given = _parse(name)
    known = technique_names()
    if head not in known:
        broken = plugins("technique").get(head)
        if broken is not None:
            raise PluginError(f"Technique {head!r} of {broken.distribution} is broken: {broken.error}")
        raise unknown_name("technique", head, known, listing="gate list techniques")
    entry = known[head]
    merged = {**entry.settings, **given, **settings}
    shown = head if not given else name
    return with_settings(entry.cls, shown, merged)


def select_techniques(text: str | Iterable[str]) -> list[str]:
    """Names for `all`, wildcards, lists and exclusions: "all,!freeu", "guidance-*,prompt+freeu". Order is kept."""
    items = _split(text, ",") if isinstance(text, str) else [i for t in text for i in _split(t, ",")]
    chosen: dict[str, None] = {}
    if items and all(i.startswith("!") for i in items):
        items = ["all", *items]
    for item in items:
        drop = item.startswith("!")
        pattern = item.lstrip("!")
        for name in _matches(pattern):
            if drop:
                chosen.pop(name, None)
            else:
                chosen[name] = None
    if not chosen:
        raise UsageError(f"No technique is left of {text!r}. See: gate list techniques")
    return list(chosen)


def _matches(pattern: str) -> list[str]:
    if pattern == "all":
        return list(everything())
    if any(c in pattern for c in "*?"):
        found = list_techniques(pattern)
        if not found:
            raise unknown_name("technique", pattern, technique_names(), listing="gate list techniques")
        return found
    create_technique(pattern)  # an unknown or impossible name is refused here, before anything is computed
    return [pattern]


def select_plugins(kind: Literal["probe", "metric"], names: Iterable[str]) -> list[Any]:
    """Instances of the named probes or metrics, in the order given; "all" is every one that loads."""
    known = plugins(kind)
    wanted = list(names)
    if wanted == ["all"]:
        wanted = [n for n, p in known.items() if p.cls is not None]
    chosen = []
    for name in wanted:
        if name not in known:
            raise unknown_name(kind, name, known, listing=f"gate list {kind}s")
        cls = known[name].cls
        if cls is None:
            raise PluginError(f"{kind.capitalize()} {name!r} is broken: {known[name].error}")
        chosen.append(cls())
    return chosen


def _split(text: str, separator: str) -> list[str]:
    """Split outside brackets, dropping what is empty."""
    parts, depth, current = [], 0, ""
    for c in text:
        depth += (c in "[(") - (c in "])")
        if c == separator and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += c
    return [p.strip() for p in (*parts, current) if p.strip()]


def split_names(text: str) -> list[str]:
    """The names of a comma-separated list; commas inside brackets belong to a name."""
    return _split(text, ",")


def _head(name: str) -> str:
    return name.partition("[")[0]


def _parse(name: str) -> tuple[str, dict[str, Any]]:
    match = re.fullmatch(r"([^\[\]]+)(?:\[(.*)\])?", name)
    if match is None:
        raise UsageError(
            f"Technique {name!r} does not read; write NAME or NAME[setting=value,setting=value]."
        )
    settings: dict[str, Any] = {}
    for item in _split(match[2] or "", ","):
        key, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"Setting {item!r} of {match[1]} needs a value: {match[1]}[{item}=VALUE].")
        try:
            settings[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            settings[key.strip()] = value.strip()
    return match[1].strip(), settings


def load_class(reference: str) -> type[Technique]:
    """A technique class from `path/to/file.py::Class`, for `gate check`."""
    import importlib.util
    from pathlib import Path

    path, _, name = reference.partition("::")
    file = Path(path)
    if not file.is_file() or not name:
        raise UsageError(f"{reference!r} names no class; write path/to/file.py::ClassName.")
    spec = importlib.util.spec_from_file_location(f"gate_checked_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        cls = getattr(module, name)
    except GateError:
        raise
    except Exception as error:  # a stranger's module may raise anything; the user needs to know what
        raise PluginError(f"{reference} could not be imported: {type(error).__name__}: {error}") from error
    if not isinstance(cls, type) or not issubclass(cls, Technique):
        raise PluginError(f"{reference} does not derive from gate.Technique.")
    return cls


def with_settings(cls: type[Technique], name: str, settings: Mapping[str, Any]) -> Technique:
    """cls(**settings) under the name `name`, with a clear error for an unknown or impossible setting."""
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    for key in settings:
        if key not in known:
            raise unknown_name(
                f"setting of {name}", key, known, listing=f"gate describe {name.partition('[')[0]}"
            )
    try:
        technique = cls(**settings)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} cannot be set up with {dict(settings)}: {error}") from error
    if name != cls.name:
        vars(technique)["name"] = name
    return technique
