"""`gate describe NAME`: all that is known about a technique, probe, metric or task; or with --backbone, about one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gate.cli.output import DebugOption, Format, FormatOption, flag, terminal, to_json
from gate.names import harmless

if TYPE_CHECKING:
    from gate.registry import PluginKind


REFERENCES = {
    "own": "features of the clean image through the technique itself; see docs/metrics.md",
    "": "features of the clean image through the plain backbone; with @own, through the technique itself",
}
_FACTS = (
    "summary",
    "source",
    "direction",
    "range",
    "unit",
    "compares",
    "needs",
    "figure",
    "scale_invariant",
    "standard",
    "weakness",
)


def describe(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A technique (also a+b), a probe, metric or task.")
    ] = None,
    backbone: Annotated[
        str | None, flag("Describe this backbone instead: what serves it, and why.", "", "NAME")
    ] = None,
    format: FormatOption = Format.table,
    debug: DebugOption = False,
) -> None:
    """Show the facts, settings, cost, needs and source of a technique, probe, metric or task; or of a backbone."""
    from gate.errors import UsageError

    if (name is None) == (backbone is None):
        raise UsageError("gate describe takes a name, or --backbone with one; see: gate list techniques")
    if backbone is not None:
        from gate.backbones.facts import backbone_facts

        found = [backbone_facts(backbone)]
    else:
        found = _found(str(name))
    if format is Format.csv:
        raise UsageError("A description is no table of rows; choose --format table, md or json.")
    if format is Format.json:
        typer.echo(to_json(found[0] if len(found) == 1 else found))
        return
    for facts in found:
        _show(facts, format)


def _found(name: str) -> list[dict[str, Any]]:
    found = [facts for kind in ("technique", "probe", "metric") if (facts := _facts(kind, name)) is not None]
    if (facts := _task(name)) is not None:
        found.append(facts)
    if not found:
        raise _unknown(name)
    return found


def _facts(kind: PluginKind, name: str) -> dict[str, Any] | None:
    from gate.plugins import find_claim

    if kind == "technique":
        return _technique(name)
    bare, _, reference = name.partition("@")
    claim = find_claim(kind, bare)
    if claim is None or reference not in (("own", "") if kind == "metric" else ("",)):
        return None
    plugin = claim.plugin
    if reference and getattr(plugin.cls, "compares", "") != "feature":
        return None
    head = {"kind": kind, "name": name}
    if getattr(plugin.cls, "compares", "") == "feature":
        head["reference"] = REFERENCES[reference]
    tail = {"distribution": plugin.distribution, "target": plugin.target}
    if plugin.cls is None:
        return {**head, "error": plugin.error, **tail}
    facts = {k: getattr(plugin.cls, k) for k in _FACTS if hasattr(plugin.cls, k)}
    facts["not_in_all"] = getattr(plugin.cls, "unlisted", "")
    return {**head, **facts, "settings": _parameters(plugin.cls), "description": _doc(plugin.cls), **tail}


def _technique(name: str) -> dict[str, Any] | None:
    from gate.composition import Composition
    from gate.names import heads
    from gate.plugins import find_claim
    from gate.registry import create_technique

    head = heads(name)[0]
    claim = find_claim("technique", head)
    if claim is None:
        return None
    plugin = claim.plugin
    if plugin.cls is None:
        return {
            "kind": "technique",
            "name": head,
            "error": plugin.error,
            "distribution": plugin.distribution,
            "target": plugin.target,
        }
    made = create_technique(name)
    facts: dict[str, Any] = {
        "kind": "technique",
        "name": made.name,
        "summary": made.summary,
        "source": made.source,
        "needs": sorted(made.needs),
        "families": sorted(made.families),
        "cost": {"calls": made.cost.total, "per_image": made.cost.per_image, "per_pass": made.cost.per_pass},
        "negative_control": made.negative_control,
        "control_of": made.control_of,
        "leak": made.leak,
        "replaces_latent": made.replaces_latent,
        "settings": made.settings,
    }
    if isinstance(made, Composition):
        return {**facts, "parts": [p.name for p in made.parts]}
    cls = plugin.cls
    return {
        **facts,
        "not_in_all": cls.unlisted,
        "neutral": cls.neutral,
        "variants": cls.variants,
        "aliases": cls.aliases,
        "compositions": cls.compositions,
        "description": _doc(cls),
        "distribution": plugin.distribution,
        "target": plugin.target,
    }


def _task(name: str) -> dict[str, Any] | None:
    from gate.cli.task import facts
    from gate.tasks import TASKS

    if name not in TASKS:
        return None
    return {"kind": "task", **facts(name), "description": _doc(TASKS[name])}


def _unknown(name: str) -> Exception:
    from gate.errors import unknown_name
    from gate.registry import create_technique, list_techniques, plugins

    if "+" in name or "[" in name:
        create_technique(name)  # names the part that is wrong
    from gate.tasks import TASKS

    known = [*list_techniques(), *plugins("probe"), *plugins("metric"), *TASKS]
    return unknown_name("name", name, known, listing="gate list techniques|probes|metrics|tasks")


def _parameters(cls: type[Any]) -> dict[str, Any]:
    """Settings of a probe or metric with their defaults, off its constructor."""
    if cls.__init__ is object.__init__:
        return {}
    parameters = list(inspect.signature(cls).parameters.values())
    return {p.name: None if p.default is p.empty else p.default for p in parameters}


def _doc(cls: type[Any]) -> str:
    """The class docstring, a line per paragraph; what dataclass writes where there is none says nothing."""
    doc = inspect.cleandoc(cls.__doc__ or "")
    paragraphs = doc.split("\n\n") if not doc.startswith(f"{cls.__name__}(") else []
    return "\n".join(" ".join(p.split()) for p in paragraphs)


def _show(facts: dict[str, Any], format: Format) -> None:
    texts = ((k, "\n".join(map(harmless, _text(k, v).split("\n")))) for k, v in facts.items())
    rows = [(k.replace("_", " "), text) for k, text in texts if text]
    if format is Format.md:
        from gate.report.table import markdown

        typer.echo(markdown(("fact", harmless(facts["name"])), [(k, t.replace("\n", " ")) for k, t in rows]))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, text in rows:
        table.add_row(Text(key, style="bold"), Text(text))
    terminal().print(table)


def _text(key: str, value: Any) -> str:
    if key == "figures":
        lines = [f"{f['name']}: {f['summary']} ({f['direction']} is better)" for f in value]
        return "\n".join(lines)
    if key == "cost" and isinstance(value, Mapping):
        each = f"{value['per_image']:g} once per image + {value['per_pass']:g} per timestep and noise seed"
        return f"{value['calls']:g} (denoiser calls: {each})"
    if key in ("negative_control", "replaces_latent", "scale_invariant", "standard"):
        return "yes" if value else "no"
    if key == "range" and value:
        return f"{value[0]:g} to {value[1]:g}"
    if key == "neutral":
        return "none: it cannot be switched off by its settings" if value is None else _text("", value)
    if isinstance(value, Mapping):
        lines = [f"{k} = {_setting(v)}" for k, v in value.items()]
        return "\n".join(lines) or ("none" if key == "settings" else "")
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or ("nothing" if key == "needs" else "")
    return str(value)


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={v!r}" for k, v in value.items())
    return repr(value)
