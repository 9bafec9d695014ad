"""Fitted networks: those that ship beside the embedded backbone, and how any of them is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gate.errors import ConfigurationError, MissingWeightsError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone

FOLDER = Path("companions")  # beside the embedded backbone's weights


def companion(backbone: Backbone, name: str, *, fit: str) -> str:
    """The folder of tiny's own companion `name`; "" for every other backbone.

    fit: the command that fits one. Raises MissingWeightsError, with that command, where tiny has none of that name.
    """
    if backbone.name != "tiny":
        return ""
    folder = backbone.source.parent / FOLDER / name
    if not folder.is_dir():
        raise MissingWeightsError(f"There is no {name} for tiny; fit one: {fit}")
    return str(folder)


def load_network(network: Any, source: str, what: str, backbone: Backbone) -> Any:
    """A network of the diffusers class `network` from a folder or the hub's cache, on the backbone's device.

    Safetensors only. Raises MissingWeightsError with the command that fetches it.
    """
    try:
        net = network.from_pretrained(
            local_folder(source), torch_dtype=backbone.dtype, use_safetensors=True, local_files_only=True
        )
    except OSError as error:
        for file in sorted(Path(source).expanduser().glob("*.safetensors")):
            _check_safetensors(file)
        raise MissingWeightsError(
            f"The {what} {source} is not on this machine; {how_to_get(source)}"
        ) from error
    return net.to(backbone.device).eval().requires_grad_(False)


def local_folder(source: str) -> str:
    """The folder of a network: `source`, or its place in the hub's cache. Raises OSError where it is in neither."""
    from huggingface_hub import snapshot_download

    from gate.backbones.hub import is_hub_id

    if is_hub_id(source):
        return snapshot_download(source, local_files_only=True)
    return str(Path(source).expanduser())


def local_file(source: str, name: str, what: str) -> Path:
    """A file of a folder, or of a repository in the hub's cache; `source` may be the file itself.

    Raises MissingWeightsError with the command that fetches it, UsageError for what is no safetensors.
    """
    from huggingface_hub import hf_hub_download

    from gate.backbones.hub import is_hub_id

    path = Path(source).expanduser()
    file = path if path.is_file() else path / name
    if file.suffix != ".safetensors":
        raise UsageError(f"{file.name} is not a safetensors file; pickled weights are never loaded.")
    if file.is_file():
        return file
    missing = f"The {what} {name} of {source} is not on this machine; {how_to_get(source, name)}"
    if not is_hub_id(source):
        raise MissingWeightsError(missing)
    try:
        return Path(hf_hub_download(source, name, local_files_only=True))
    except OSError as error:
        raise MissingWeightsError(missing) from error


def load_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises ConfigurationError where it is something else under that name."""
    from safetensors.torch import load_file

    _check_safetensors(file)
    return load_file(file)


def _check_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except SafetensorError as error:
        raise ConfigurationError(
            f"{file} is cut short, or holds no safetensors, whatever its name says (pickled weights are never loaded); "
            "fetch it again."
        ) from error


def how_to_get(source: str, name: str = "") -> str:
    """The end of a sentence that says what is missing."""
    if Path(source).expanduser().exists():
        return "the folder is not complete."
    return f"fetch it with: hf download {source} {name}".rstrip()


def cross_width(network: Any) -> int:
    """Of its cross-attention; 0 where it has none."""
    width = network.config.cross_attention_dim
    return width if isinstance(width, int) else 0
