"""A latent cache on the disk: an image is encoded once, whatever technique, seed or timestep asks for its latent.

Encoding costs 1.4 times what the whole denoiser does (Stable Diffusion 1.5, 512 px), and its result depends on nothing
but the image and the VAE. A latent from here has the bits that encoding it now would give: the key holds the image's
bytes, and the group they lie in all that those bits depend on besides.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gate.backbone import Backbone, pixels
from gate.extraction.cache_folder import ABOUT, LIMIT, make_room
from gate.extraction.latent_index import KEY, Index, checksum
from gate.runs.directory import write_arrays, write_json
from gate.sample import Sample

LAYOUT = "1"  # of the files; another one is another group
AT_ONCE = 16  # images that are encoded in a call: 50 MB of pixels at 512 px

Log = Callable[[str], None]


class LatentCache:
    """Latents x0, (c, h, w) float32, of images that this backbone has encoded before.

    folder: see `gate.extraction.cache_folder`; several processes may use it at once. backbone: as it will encode (its
    VAE's weights are hashed here, once). limit: bytes of the whole folder. log: told once where it cannot be written.

    A damaged file is deleted, and its latents are encoded again. Where latents are pixels, nothing is kept.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        backbone: Backbone,
        *,
        limit: int = LIMIT,
        log: Log | None = None,
    ) -> None:
        self.folder, self.limit, self.log = Path(folder), limit, log or (lambda _: None)
        self.facts, self.name = circumstances(backbone), backbone.name
        self.keeps = getattr(backbone, "vae", None) is not None
        self._indices: dict[Path, Index] = {}
        self._unchecked = limit  # bytes written since the folder was measured; at first nobody knows
        self._writable = True

    @property
    def group(self) -> Path:
        """Where latents lie that are encoded as they would be now: threads share sums, so their number counts."""
        digest = hashlib.blake2b(json.dumps(self._facts, sort_keys=True).encode(), digest_size=16)
        return self.folder / digest.hexdigest()

    @property
    def _facts(self) -> dict[str, str]:
        return {**self.facts, "threads": str(torch.get_num_threads())}

    def get(self, samples: Sequence[Sample]) -> list[Tensor | None]:
        """The latent of each sample, (c, h, w) on the CPU, or None where it is not here."""
        found: list[Tensor | None] = [None] * len(samples)
        if not self.keeps:
            return found
        index, keys = self._index(), [key_of(sample) for sample in samples]
        places = index.find(keys)
        if None in places:
            index.refresh()
            places = index.find(keys)
        rows: dict[Path, list[tuple[int, int]]] = {}
        for i, place in enumerate(places):
            if place is not None:
                rows.setdefault(place[0], []).append((i, place[1]))
        for file, wanted in rows.items():
            latents = index.read(file, [(keys[i], row) for i, row in wanted])
            for (i, _), latent in zip(wanted, latents, strict=True):
                found[i] = latent
        return found

    def put(self, samples: Sequence[Sample], x0: Tensor) -> None:
        """Keep the latents of these samples, those that are not here yet. x0: (n, c, h, w) float32.

        Each call writes a file, so a chunk is better put at once. A disk that takes no more ends the writing, not the
        run.
        """
        if not (self.keeps and self._writable and len(samples)):
            return
        group, index = self.group, self._index()
        keys = {key_of(sample): i for i, sample in enumerate(samples)}
        new = [key for key, place in zip(keys, index.find(list(keys)), strict=True) if place is None]
        if not new:
            return
        values = x0[[keys[key] for key in new]].detach().to("cpu", torch.float32).contiguous().numpy()
        sums = [checksum(key, value) for key, value in zip(new, values, strict=True)]
        file = group / f"{len(new)}-{uuid.uuid4().hex}.safetensors"
        try:
            group.mkdir(mode=0o700, parents=True, exist_ok=True)  # of images that may be private
            if not (group / ABOUT).is_file():
                write_json(group / ABOUT, {**self._facts, "backbone": self.name})  # whoever comes first
            write_arrays(file, {"x0": values, "keys": _bytes(new), "sums": _bytes(sums)})
            self._unchecked += file.stat().st_size
            if self._unchecked > self.limit / 16:
                make_room(self.folder, self.limit)
                self._unchecked = 0
        except OSError as error:
            self._writable = False
            self.log(
                f"the latent cache in {self.folder} cannot be written ({error.strerror}); what is not in it is encoded "
                "each time. Choose another directory with GATE_CACHE, or make room: gate cache clear"
            )

    def _index(self) -> Index:
        group = self.group
        if group not in self._indices:
            self._indices[group] = Index(group)
        return self._indices[group]


def encode_cached(backbone: Backbone, samples: Sequence[Sample], cache: LatentCache | None) -> Tensor:
    """x0, (n, c, h, w) float32 on the backbone's device, contiguous; the same bits with and without a cache."""
    rows: list[Tensor | None] = [None] * len(samples) if cache is None else cache.get(samples)
    missing = [i for i, row in enumerate(rows) if row is None]
    for at in range(0, len(missing), AT_ONCE):
        some = missing[at : at + AT_ONCE]
        for i, latent in zip(some, backbone.encode(pixels([samples[i] for i in some])), strict=True):
            rows[i] = latent
    known = [row.to(backbone.device) for row in rows if row is not None]
    x0 = torch.stack(known)  # contiguous, whatever layout the VAE works in
    if cache is not None and missing:
        cache.put([samples[i] for i in missing], x0[missing])
    return x0


def key_of(sample: Sample) -> bytes:
    """Of the image's bytes and shape: a sample's id may be anybody's choice, and is half as long."""
    digest = hashlib.blake2b(repr(sample.image.shape).encode(), digest_size=KEY)
    digest.update(np.ascontiguousarray(sample.image).data)
    return digest.digest()


def circumstances(backbone: Backbone) -> dict[str, str]:
    """All that a latent's bits depend on besides the image and the number of threads, by name."""
    vae, device = getattr(backbone, "vae", None), backbone.device
    facts = {
        "layout": LAYOUT,
        "image_size": str(backbone.image_size),
        "torch": torch.__version__,
        "device": device.type,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "precision": torch.get_float32_matmul_precision(),
    }
    if device.type == "cuda":
        facts["processor"] = torch.cuda.get_device_name(device)
        facts["precision"] += (
            f", tf32 {torch.backends.cuda.matmul.allow_tf32} {torch.backends.cudnn.allow_tf32}"
        )
    if isinstance(vae, nn.Module):
        facts["dtype"] = str(getattr(vae, "dtype", backbone.dtype)).removeprefix("torch.")
        facts["vae"] = module_hash(vae)
    return facts


def module_hash(module: nn.Module) -> str:
    """Of a module's class, config, and tensors as they are in memory, their strides too: kernels follow them."""
    config: Any = getattr(module, "config", {})
    said = sorted(
        (k, v) for k, v in dict(config).items() if not k.startswith("_")
    )  # not where it was loaded from
    digest = hashlib.blake2b(f"{type(module).__qualname__} {said}".encode(), digest_size=8)
    for name, value in module.state_dict().items():
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)} {value.stride()}\n".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _bytes(rows: Sequence[bytes]) -> NDArray[np.uint8]:
    """(n, KEY)."""
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), KEY)
