"""Techniques, probes and metrics by name, found through entry points; a broken plug-in is listed, never fatal."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import json
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gate.composition import Composition
from gate.errors import PluginError, UsageError, unknown_name
from gate.names import has_wildcard, heads, parse_name, split_names, split_parts
from gate.plugins import GROUPS, Plugin, PluginKind, claims, find_claim, plugins, refused
from gate.technique import Technique

__all__ = [
    "GROUPS",
    "Plugin",
    "PluginKind",
    "TechniqueName",
    "create_technique",
    "everything",
    "find_technique",
    "list_techniques",
    "plugins",
    "refused",
    "select_plugins",
    "select_techniques",
    "technique_names",
    "with_settings",
]


@dataclass(frozen=True)
class TechniqueName:
    """A name that can be screened: the class behind it and the settings that make it. name: an old one is replaced."""

    name: str
    cls: type[Technique]
    settings: dict[str, Any]


def technique_names() -> dict[str, TechniqueName]:
    """Every technique and variant that loads, by name; old names are left out."""
    names: dict[str, TechniqueName] = {}
    known = claims("technique")
    for plugin in plugins("technique").values():
        if plugin.cls is None:
            continue
        for name in (plugin.name, *plugin.cls.variants):
            if name in known and known[name].plugin is plugin:
                names[name] = TechniqueName(name, plugin.cls, dict(known[name].settings))
    return names


def find_technique(head: str) -> TechniqueName:
    """What a name without brackets stands for; an old name leads to the new one, with a warning on stderr.

    Raises PluginError where it is broken, UsageError where nobody has it.
    """
    claim = find_claim("technique", head)
    if claim is None:
        raise unknown_name("technique", head, technique_names(), listing="gate list techniques")
    plugin = claim.plugin
    if plugin.cls is None:
        raise PluginError(f"Technique {head!r} of {plugin.distribution} is broken: {plugin.error}")
    if claim.now:
        _say_renamed(head, claim.now)
    return TechniqueName(claim.now or head, plugin.cls, dict(claim.settings))


@functools.cache
def _say_renamed(old: str, now: str) -> None:
    """Once a process, however often the name is looked up."""
    print(f"gate: technique {old!r} is called {now!r} now; the old name still works.", file=sys.stderr)


def everything() -> tuple[str, ...]:
    """The names of `--techniques all`: listed techniques and variants, then the compositions they declare."""
    names = technique_names()
    single = [n for n, t in names.items() if t.settings or t.cls.listed]
    composed = dict.fromkeys(c for t in names.values() for c in t.cls.compositions)
    return tuple(single) + tuple(c for c in composed if all(h in names for h in heads(c)))


def list_techniques(pattern: str = "*") -> list[str]:
    """Names of techniques, variants and the compositions of `all` that match a wildcard pattern."""
    known = list(dict.fromkeys([*technique_names(), *everything()]))
    return [n for n in known if fnmatch.fnmatchcase(n, pattern)]


def create_technique(name: str, **settings: Any) -> Technique:
    """A technique by name: `prompt`, `guidance-cfg`, `freeu[b1=1.2,s1=0.9]`, `prompt+noise-ensemble`."""
    parts = split_parts(name)
    if len(parts) > 1:
        if settings:
            raise UsageError(
                f"Settings of {name} belong in brackets, as in {parts[0]}[setting=value]+{parts[1]}."
            )
        return Composition(parts=tuple(create_technique(p) for p in parts))
    head, given = parse_name(name)
    entry = find_technique(head)
    shown = entry.name if not given else entry.name + name.strip()[len(head) :]
    return with_settings(entry.cls, shown, {**entry.settings, **given, **settings})


def select_techniques(text: str | Iterable[str]) -> list[str]:
    """Names for `all`, wildcards, lists and exclusions: "all,!freeu", "guidance-*,prompt+freeu". Order is kept."""
    items = [name for t in ([text] if isinstance(text, str) else text) for name in split_names(t)]
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
    if has_wildcard(pattern):
        found = list_techniques(pattern)
        if not found:
            raise unknown_name("technique", pattern, technique_names(), listing="gate list techniques")
        return found
    # what is unknown or impossible is refused here, before anything is computed; an old name becomes the new one
    return [create_technique(pattern).name]


def select_plugins(kind: Literal["probe", "metric"], names: Iterable[str]) -> list[Any]:
    """Instances of the named probes or metrics, in the order given.

    "all" is every one that loads, "standard" those of them that are measured unasked.
    """
    wanted = list(names)
    if wanted in (["all"], ["standard"]):
        every = wanted == ["all"]
        wanted = [n for n, p in plugins(kind).items() if p.cls is not None and (every or p.cls.standard)]
    chosen = []
    for name in wanted:
        claim = find_claim(kind, name)
        if claim is None:
            raise unknown_name(kind, name, plugins(kind), listing=f"gate list {kind}s")
        if claim.plugin.cls is None:
            raise PluginError(f"{kind.capitalize()} {name!r} is broken: {claim.plugin.error}")
        chosen.append(claim.plugin.cls())
    return chosen


def with_settings(cls: type[Technique], name: str, settings: Mapping[str, Any]) -> Technique:
    """cls(**settings) under the name `name`, with a clear error for an unknown or impossible setting."""
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    for key in settings:
        if key not in known:
            raise unknown_name(
                f"setting of {name}", key, known, listing=f"gate describe {name.partition('[')[0]}"
            )
    settings = {key: _checked(cls, name, key, value) for key, value in settings.items()}
    try:
        technique = cls(**settings)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} cannot be set up with {dict(settings)}: {error}") from error
    if name != cls.name:
        vars(technique)["name"] = name
    return technique


def _checked(cls: type[Technique], name: str, key: str, value: Any) -> Any:
    """A setting, held to the type that the technique declares for it: one value is a list of one. Raises UsageError.

    By the rules of JSON, where a list is a tuple and an integer a number, but True is no 1 and infinity is nothing.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

    try:
        declared = _declared(cls, key)
        adapter = TypeAdapter(declared, config=ConfigDict(strict=True, allow_inf_nan=False))
    except (NameError, PydanticSchemaGenerationError, PydanticUndefinedAnnotation):
        return value  # a type that is imported for type checkers alone, or of a stranger's own making
    if typing.get_origin(declared) is tuple and not isinstance(value, (list, tuple)):
        value = (value,)
    try:
        try:
            adapter.validate_json(json.dumps(value))
        except TypeError:  # no JSON: an object from Python
            adapter.validate_python(value, strict=False)
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Input ")
        raise UsageError(
            f"{name} cannot be set up: {key} must be {_spelled(cls, key)}, got {value!r}, and it {said}. "
            f"See: gate describe {cls.name}"
        ) from error
    return value


def _declared(cls: type[Technique], key: str) -> Any:
    """The type of a field, resolved where its class was written. Raises NameError where that is impossible."""
    home = next(c for c in cls.__mro__ if key in vars(c).get("__annotations__", {}))
    lone = types.SimpleNamespace(__annotations__={key: home.__annotations__[key]})
    return typing.get_type_hints(lone, vars(sys.modules[home.__module__]))[key]


def _spelled(cls: type[Technique], key: str) -> str:
    declared = next(f.type for f in dataclasses.fields(cls) if f.name == key)
    return declared if isinstance(declared, str) else getattr(declared, "__name__", str(declared))
