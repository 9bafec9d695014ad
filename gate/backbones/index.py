"""A pipeline's folder: which parts its model_index.json names, of which class, and a hash of their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def part_of(index: Mapping[str, Any], *names: str) -> tuple[str, str]:
    """(library, class) of the first of these parts that a model_index.json has; two empty texts where it has none."""
    for name in names:
        entry = index.get(name)
        if isinstance(entry, (list, tuple)) and len(entry) == 2 and entry[0] and entry[1]:
            return str(entry[0]), str(entry[1])
    return "", ""


def part_names(index: Mapping[str, Any]) -> list[str]:
    """The parts that a backbone is made of: no safety checker, no image encoder, nothing that is null."""
    heads = ("vae", "vqvae", "unet", "transformer", "text_encoder", "tokenizer", "scheduler")
    return [
        name
        for name in index
        if (name in heads or name.startswith(("text_encoder_", "tokenizer_"))) and part_of(index, name)[1]
    ]


def weights_hash(source: Path) -> str:
    """16 hexadecimal digits over names and contents of the weights. source: a pipeline's folder, or a single file."""
    digest = hashlib.blake2b(digest_size=8)
    single = source.is_file()
    for file in [source] if single else sorted(source.glob("*/*.safetensors")):
        digest.update((file.name if single else file.relative_to(source).as_posix()).encode())
        with file.open("rb") as weights:
            while block := weights.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
