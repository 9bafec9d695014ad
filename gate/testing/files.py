"""A plug-in in a file that is not installed yet."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from gate.errors import GateError, PluginError, UsageError
from gate.metric import Metric
from gate.probe import Probe
from gate.technique import Technique


def load_class(reference: str) -> type[Any]:
    """A technique, metric or probe from `path/to/file.py::Class`, for `gate check`."""
    path, _, name = reference.partition("::")
    file = Path(path)
    if not file.is_file() or not name:
        raise UsageError(f"{reference!r} names no class; write path/to/file.py::ClassName.")
    spec = importlib.util.spec_from_file_location(f"gate_checked_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        cls = getattr(module, name)
    except (GateError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a stranger's module may raise anything; the user needs to know what
        raise PluginError(f"{reference} could not be imported: {type(error).__name__}: {error}") from error
    if not isinstance(cls, type) or not issubclass(cls, (Technique, Metric, Probe)):
        raise PluginError(f"{reference} derives from none of gate.Technique, gate.Metric and gate.Probe.")
    return cls
