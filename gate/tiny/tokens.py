"""The tokenizer of the tiny pipeline: CLIP's byte-level BPE, trained on the words of the scenes.

Every word of a caption is one token. Held-out names have a token too, which training never sees: it stays at
its small first value, where spelling the name in known pieces would mislead. Any other text falls back to
bytes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from gate.tiny.backgrounds import COLOURS, GROUNDS
from gate.tiny.models import TOKENS
from gate.tiny.scenes import CLASSES, sprites

END = "</w>"


def words() -> list[str]:
    """All words that captions are made of, sorted, and a few that prompts in general use."""
    texts = [s.phrase for s in sprites("all")] + list(CLASSES) + list(COLOURS) + list(GROUNDS)
    texts.append(
        "a an photo of and on in with the background image picture scene two three high low quality blurry"
    )
    return sorted({word for text in texts for word in text.split()})


def new_tokenizer() -> Any:
    """CLIPTokenizer: byte alphabet, byte alphabet at word ends, one merge chain per word, two marks."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = alphabet + [letter + END for letter in alphabet]
    merges = _merges(words())
    pieces += [left + right for left, right in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def _merges(vocabulary: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first (ties by spelling), until every word is one piece."""
    split = [[*word[:-1], word[-1] + END] for word in vocabulary]
    merges: list[tuple[str, str]] = []
    while True:
        counts: dict[tuple[str, str], int] = {}
        for pieces in split:
            for pair in pairwise(pieces):
                counts[pair] = counts.get(pair, 0) + 1
        if not counts:
            return merges
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        split = [_join(pieces, best) for pieces in split]


def _join(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """`pieces` with each occurrence of `pair` made one, left to right."""
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def tokenise(tokenizer: Any, texts: list[str]) -> Any:
    """Token numbers (n, TOKENS) int64, padded and cut as StableDiffusionPipeline does."""
    return tokenizer(
        texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
