"""Files of a pipeline: in a local folder, in the hub's cache, or fetched. Offline first, safetensors only."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gate.errors import ConfigurationError, MissingWeightsError, UsageError

EMBEDDED = Path(__file__).parent.parent / "tiny" / "weights"
INDEX = "model_index.json"
WEIGHTS = ("diffusion_pytorch_model", "model")  # what diffusers and transformers call a part's file
PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
PATIENCE = 10.0  # seconds for the hub's first answer
SMALL = ("json", "txt", "model", "jinja", "tiktoken")  # configs and vocabularies


def is_hub_id(name: str) -> bool:
    """Whether a name can be a repository: OWNER/NAME and nothing on this machine."""
    return (
        name.count("/") == 1
        and not name.startswith((".", "/", "~"))
        and not name.endswith((".safetensors", ".gguf", *PICKLES))
        and not Path(name).exists()
    )


def single_file(name: str) -> Path | None:
    """The safetensors file that a name is, or None. Raises UsageError for pickled weights."""
    path = Path(name).expanduser()
    if name.endswith(PICKLES):
        raise UsageError(
            f"{name} is pickled; only safetensors are loaded. Convert it once, where you trust it (in Python: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True)['state_dict'], NEW_FILE)), or find a "
            "converted one."
        )
    if name.endswith(".gguf"):
        raise UsageError(
            f"{name} holds the quantised weights of a denoiser alone, which gate does not screen. In your own loop "
            "diffusers reads them (Class.from_single_file with a GGUFQuantizationConfig, and the gguf package), and "
            "gate.capture reads its layers; for a screening, load the pipeline's safetensors."
        )
    if not name.endswith(".safetensors"):
        return None
    if not path.is_file():
        raise UsageError(f"There is no file {name}.")
    return path


def check_name(name: str, *, revision: str | None = None, pipeline: str | None = None) -> None:
    """Refuse what can be no backbone, as far as this machine knows. Raises UsageError."""
    if single_file(name) is None and not is_hub_id(name):
        pipeline_folder(name)
        if revision:
            raise UsageError(
                f"A revision belongs to a hub id, and {name} is on this machine; leave --revision out."
            )
    if pipeline and not is_hub_id(pipeline):
        pipeline_folder(pipeline)


def pipeline_folder(name: str, revision: str | None = None) -> Path:
    """The folder of a backbone: embedded, local, or in the hub's cache (its configs are fetched where they can be)."""
    if name == "tiny":
        return EMBEDDED
    local = Path(name).expanduser()
    if is_hub_id(name):
        folder = cached(name, revision)
        return (
            folder
            if folder is not None and (folder / INDEX).is_file()
            else fetch(name, revision, weights=False)
        )
    if (local / INDEX).is_file():
        return local
    raise UsageError(
        f"Unknown backbone {name!r}: it is neither 'tiny', a hub id such as "
        "'stable-diffusion-v1-5/stable-diffusion-v1-5', a folder with a model_index.json, nor a safetensors file."
    )


def read_index(name: str, folder: Path) -> dict[str, Any]:
    """The pipeline's model_index.json."""
    try:
        text = (folder / INDEX).read_text(encoding="utf-8")
    except OSError as error:
        raise MissingWeightsError(f"The backbone {name} has no readable {INDEX} in its folder.") from error
    return _object(name, folder / INDEX, text)


def read_config(name: str, file: Path) -> dict[str, Any]:
    """A part's config. Raises MissingWeightsError, or ConfigurationError naming the file, and where it is broken."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MissingWeightsError(f"{name} has no readable {file.parent.name}/{file.name}.") from error
    return _object(name, file, text)


def _object(name: str, file: Path, text: str) -> dict[str, Any]:
    where = file.name if file.name == INDEX else f"{file.parent.name}/{file.name}"
    try:
        read = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(
            f"{where} of {name} is no JSON ({error}); fetch the file again, or repair that place."
        ) from error
    if not isinstance(read, dict):
        raise ConfigurationError(f"{where} of {name} is not an object; fetch the file again.")
    return read


def cached(name: str, revision: str | None = None) -> Path | None:
    """The snapshot of a repository in the hub's cache, which may lack files; no network. None: not here."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[INDEX], local_files_only=True))
    except Exception:  # the hub has many ways to say that it is not here
        return None


def fetch(name: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """Download what a backbone needs of a repository, resuming; only configs without `weights`. Returns its snapshot.

    Of a repository that is no pipeline (a LoRA, a ControlNet): its safetensors and configs. Raises
    MissingWeightsError where the network, or a licence, stands between; UsageError where there is no such model.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    again = f"gate download {name}" + (f" --revision {revision}" if revision else "")
    try:
        found = HfApi().model_info(name, revision=revision, timeout=PATIENCE)
        chosen = wanted_files([file.rfilename for file in found.siblings or ()], weights=weights)
        if any(file.endswith(".safetensors") for file in chosen) or not weights:
            return Path(snapshot_download(name, revision=revision, allow_patterns=chosen))
    except GatedRepoError as error:
        raise MissingWeightsError(
            f"{name} is gated: accept its licence at https://huggingface.co/{name}, run hf auth login, then: {again}"
        ) from error
    except RevisionNotFoundError as error:
        raise UsageError(
            f"{name} has no revision {revision!r}; see https://huggingface.co/{name}/commits"
        ) from error
    except RepositoryNotFoundError as error:
        raise UsageError(f"Unknown backbone {name!r}: the hub has no such model.") from error
    except (
        Exception
    ) as error:  # the hub's client speaks through several HTTP libraries, each with its own errors
        raise MissingWeightsError(
            f"{name} is not on this machine and the hub could not be reached ({type(error).__name__}); on a machine "
            f"with a network run: {again}"
        ) from error
    raise ConfigurationError(
        f"{name} holds no safetensors; pickled weights are never loaded. Look for a converted revision."
    )


def wanted_files(files: Iterable[str], *, weights: bool = True) -> list[str]:
    """Of a repository's files, those that a backbone needs: each part's configs, and its weights in full precision.

    A part that exists in half precision only is taken as that.
    """
    every = list(files)
    pipeline = INDEX in every
    parts = ("vae", "vqvae", "unet", "transformer", "text_encoder*", "tokenizer*", "scheduler")

    def ours(file: str) -> bool:
        head = file.rpartition("/")[0]
        return not pipeline or file == INDEX or any(fnmatch.fnmatch(head, part) for part in parts)

    mine = [f for f in every if ours(f)]
    chosen = [f for f in mine if f.endswith(tuple(f".{end}" for end in SMALL))]
    if not weights:
        return chosen
    if not pipeline:
        return chosen + [f for f in mine if f.endswith(".safetensors")]
    for folder in sorted({f.rpartition("/")[0] for f in mine}):
        inside = [f for f in mine if f.rpartition("/")[0] == folder and f.endswith(".safetensors")]
        full = [f for f in inside if _is_weights(f, "")]
        chosen += full or [f for f in inside if _is_weights(f, "fp16")]
    return chosen


def _is_weights(file: str, variant: str) -> bool:
    name = file.rpartition("/")[2]
    middle = f".{variant}" if variant else ""
    return any(
        name == f"{stem}{middle}.safetensors"
        or fnmatch.fnmatch(name, f"{stem}{middle}-?????-of-?????.safetensors")
        or bool(variant and fnmatch.fnmatch(name, f"{stem}-?????-of-?????{middle}.safetensors"))
        for stem in WEIGHTS
    )


def variant_of(folder: Path) -> str | None:
    """ "fp16" where a part's folder holds half precision only, else None."""
    names = [f"{folder.name}/{file.name}" for file in folder.glob("*.safetensors")]
    full = any(_is_weights(name, "") for name in names)
    return "fp16" if not full and any(_is_weights(name, "fp16") for name in names) else None


def missing_files(folder: Path, index: Mapping[str, Any], parts: Iterable[str]) -> list[str]:
    """What a pipeline's folder lacks of these parts, as PART/FILE; shards by their index."""
    missing = []
    for part in parts:
        where = folder / part
        if part == "scheduler":
            needed = ["scheduler_config.json"]
        elif part.startswith("tokenizer"):
            needed = [] if where.is_dir() and any(where.iterdir()) else ["tokenizer_config.json"]
        else:
            needed = ["config.json", *_weight_files(where)]
        missing += [f"{part}/{file}" for file in needed if not (where / file).is_file()]
    return missing


def _weight_files(folder: Path) -> list[str]:
    """The weights that a part's folder should hold, by its index of shards where there is one."""
    for stem in WEIGHTS:
        for shards in sorted(folder.glob(f"{stem}.safetensors.index*.json")):
            return sorted(set(json.loads(shards.read_text(encoding="utf-8"))["weight_map"].values()))
    for stem in WEIGHTS:
        for middle in ("", ".fp16"):
            if (folder / f"{stem}{middle}.safetensors").is_file():
                return [f"{stem}{middle}.safetensors"]
    return [
        "model.safetensors"
        if folder.name.startswith("text_encoder")
        else "diffusion_pytorch_model.safetensors"
    ]
