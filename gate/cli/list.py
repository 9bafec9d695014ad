"""`gate list techniques|probes|metrics|tasks|layers|backbones|data`: what there is to choose from."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gate.cli.output import DebugOption, Format, FormatOption, echo_rows

if TYPE_CHECKING:
    from gate.registry import Plugin
    from gate.technique import Technique

    Rows = list[dict[str, Any]]
    Columns = Mapping[str, Callable[[Mapping[str, Any]], str]]


FAMILIES = Path(__file__).parents[1] / "backbones" / "families"


class Listing(str, Enum):
    """What can be listed."""

    techniques = "techniques"
    probes = "probes"
    metrics = "metrics"
    tasks = "tasks"
    layers = "layers"
    backbones = "backbones"
    data = "data"


def list_(
    what: Annotated[Listing, typer.Argument(help="What to list.", show_default=False)],
    pattern: Annotated[str, typer.Argument(help="A wildcard that names must match.")] = "*",
    backbone: Annotated[
        str, typer.Option(help="Whose layers: a backbone, or a denoiser's config.json.")
    ] = "tiny",
    format: FormatOption = Format.table,
    debug: DebugOption = False,
) -> None:
    """List names with a line on each. A plug-in that does not load is listed with its error."""
    rows, columns = _SOURCES[what](backbone)
    shown = [r for r in rows if fnmatch.fnmatchcase(r["name"], pattern)]
    if not shown:  # a name of someone else's, then: shown beside ours
        shown = [r for r in rows if fnmatch.fnmatchcase(r.get("alias") or "", pattern)]
    else:
        columns = {head: cell for head, cell in columns.items() if head != "alias"}
    if not shown and rows:
        from gate.errors import unknown_name

        kind = what.value if what is Listing.data else what.value[:-1]
        raise unknown_name(kind, pattern, [r["name"] for r in rows], listing=f"gate list {what.value}")
    echo_rows(shown, columns, format)


def _name(row: Mapping[str, Any]) -> str:
    return str(row["name"])


def _summary(row: Mapping[str, Any]) -> str:
    if row.get("error"):
        return f"BROKEN ({row['distribution']}): {row['error']}"
    marks = [m for m, on in (("control", row.get("negative_control")), ("leak", row.get("leak"))) if on]
    return row["summary"] + (f" [{', '.join(marks)}]" if marks else "")


def _techniques(backbone: str) -> tuple[Rows, Columns]:
    from gate.names import heads
    from gate.registry import create_technique, everything, list_techniques, plugins, refused, technique_names

    in_all, known, held = set(everything()), technique_names(), plugins("technique")
    rows: Rows = []
    for name in list_techniques("*"):
        plugin = held[known[heads(name)[0]].cls.name]
        try:
            made = create_technique(name)
            rows.append({**_described(made), "in_all": name in in_all, "distribution": plugin.distribution})
        except (Exception, SystemExit) as error:  # a stranger's constructor or facts: shown beside the others
            rows.append(_broken(plugin, name, f"{type(error).__name__}: {error}"))
    rows += [_broken(p, p.name, p.error) for p in (*held.values(), *refused("technique")) if p.cls is None]
    return rows, {
        "name": _name,
        "calls": lambda r: f"{r['cost']['calls']:g}" if "cost" in r else "",
        "needs": lambda r: ", ".join(r.get("needs", ())),
        "summary": _summary,
    }


def _described(made: Technique) -> dict[str, Any]:
    cost = made.cost
    return {
        "name": made.name,
        "summary": made.summary,
        "source": made.source,
        "needs": sorted(made.needs),
        "families": sorted(made.families),
        "negative_control": made.negative_control,
        "leak": made.leak,
        "cost": {"calls": cost.total, "per_image": cost.per_image, "per_pass": cost.per_pass},
        "settings": made.settings,
    }


def _broken(plugin: Plugin, name: str, error: str) -> dict[str, Any]:
    return {
        "name": name,
        "summary": f"broken: {error}",
        "error": error,
        "distribution": plugin.distribution,
        "target": plugin.target,
    }


def _plugins(kind: Literal["probe", "metric"], facts: tuple[str, ...]) -> Rows:
    from gate.registry import plugins, refused

    rows = []
    for plugin in (*plugins(kind).values(), *refused(kind)):
        if plugin.cls is None:
            rows.append(_broken(plugin, plugin.name, plugin.error))
            continue
        row = {"name": plugin.name, "summary": plugin.cls.summary, "source": plugin.cls.source}
        row |= {fact: getattr(plugin.cls, fact) for fact in facts}
        rows.append({**row, "distribution": plugin.distribution})
    return rows


def _probes(backbone: str) -> tuple[Rows, Columns]:
    rows = _plugins("probe", ("needs", "figure", "direction", "range", "standard"))
    return rows, {
        "name": _name,
        "needs": lambda r: r.get("needs", ""),
        "figure": lambda r: r.get("figure", ""),
        "better": lambda r: r.get("direction", ""),
        "measured": _when,
        "summary": _summary,
    }


def _when(row: Mapping[str, Any]) -> str:
    return {True: "unasked", False: "when named"}.get(row.get("standard", ""), "")


def _metrics(backbone: str) -> tuple[Rows, Columns]:
    rows = _plugins(
        "metric", ("compares", "unit", "direction", "range", "scale_invariant", "weakness", "standard")
    )
    return rows, {
        "name": _name,
        "compares": lambda r: r.get("compares", ""),
        "better": lambda r: r.get("direction", ""),
        "measured": _when,
        "summary": _summary,
    }


def _tasks(backbone: str) -> tuple[Rows, Columns]:
    from gate.cli.task import listed

    return listed()


def _layers(backbone: str) -> tuple[Rows, Columns]:
    from gate.backbones.aliases import PRESETS, peer_name, presets
    from gate.backbones.load import layers_of
    from gate.errors import ConfigurationError

    layers, refused = layers_of(backbone)
    if refused:
        typer.echo(
            f"gate.capture reads these layers in your own loop; gate does not load it: {refused}", err=True
        )
    known, chosen = {layer.id: layer.path for layer in layers}, {}
    for preset in PRESETS:
        with contextlib.suppress(ConfigurationError):  # this denoiser has no such layers
            chosen[preset] = presets(preset, known)
    rows = [
        {
            "name": layer.id,
            "summary": f"{layer.channels} {'heads' if layer.is_map else 'channels'} at 1/{layer.stride} of the "
            f"latent's side, after {layer.cost:.0%} of the forward's FLOPs"
            if layer.stride
            else "known by its place alone: no family makes a forward of this denoiser",
            "channels": layer.channels or None,
            "stride": layer.stride or None,
            "block": layer.block,
            "cost": layer.cost if layer.stride else None,
            "map": layer.is_map,
            "path": layer.path,
            "alias": peer_name(layer.id),
            "presets": [preset for preset, names in chosen.items() if layer.id in names],
        }
        for layer in layers
    ]
    return rows, {
        "name": _name,
        "channels": lambda r: f"{r['channels'] or ''}{' heads' if r['map'] else ''}",
        "stride": lambda r: str(r["stride"] or ""),
        "FLOPs": lambda r: "" if r["cost"] is None else f"{r['cost']:.1%}",
        "preset": lambda r: ", ".join(r["presets"]),
        "alias": lambda r: r["alias"] or "",
    }


def _backbones(backbone: str) -> tuple[Rows, Columns]:
    rows: Rows = [{"name": "tiny", "summary": "Embedded: a small latent diffusion model of emoji scenes."}]
    rows += [
        {"name": name, "summary": f"On this machine, in the hub's cache: {kind}."} for name, kind in _cached()
    ]
    fetched = f"Any diffusers pipeline of these families: {', '.join(_families())}. A hub id is fetched on first use."
    rows.append({"name": "HUB_ID|FOLDER|FILE", "summary": fetched})
    return rows, {"name": _name, "summary": _summary}


def _families() -> list[str]:
    """Names of the families of backbones, without importing them."""
    import pkgutil
    from importlib.metadata import entry_points

    own = [module.name.replace("_", "-") for module in pkgutil.iter_modules([str(FAMILIES)])]
    return sorted({*own, *(point.name for point in entry_points(group="gate.families"))})


def cached_pipelines() -> list[tuple[str, Path]]:
    """(hub id, model_index.json) of every pipeline in the hub's cache, whole or not."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return [
        (index.parts[-4].removeprefix("models--").replace("--", "/"), index)
        for index in sorted(Path(HF_HUB_CACHE).glob("models--*/snapshots/*/model_index.json"))
    ]


def _cached() -> list[tuple[str, str]]:
    """(hub id, pipeline class) of every pipeline in the hub's cache that holds a denoiser."""
    import json

    found = {}
    for name, index in cached_pipelines():
        try:
            read = json.loads(index.read_text(encoding="utf-8"))
            if "unet" in read or "transformer" in read:
                found[name] = str(read["_class_name"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a half-fetched or foreign folder is no backbone
    return sorted(found.items())


def _data(backbone: str) -> tuple[Rows, Columns]:
    from gate.data import DATA

    rows: Rows = [{"name": d.name, "summary": d.summary} for d in DATA.values()]
    return rows, {"name": _name, "summary": _summary}


_SOURCES: dict[Listing, Callable[[str], tuple[Rows, Columns]]] = {
    Listing.techniques: _techniques,
    Listing.probes: _probes,
    Listing.metrics: _metrics,
    Listing.tasks: _tasks,
    Listing.layers: _layers,
    Listing.backbones: _backbones,
    Listing.data: _data,
}
