"""Prompts that are kept: never more than so many bytes, the oldest-used go first, and no bit depends on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gate.backbones.prompts import LIMIT, Prompts, size_of
from gate.intact import Intact
from gate.request import Conditioning


def row(text: str, size: int = 25) -> Conditioning:
    """4 bytes a number: 100 bytes, and 8 more of a mask."""
    return Conditioning(torch.full((1, 1, size), float(len(text))), mask=torch.ones(1, 8, dtype=torch.uint8))


class Encoder:
    def __init__(self, size: int = 25) -> None:
        self.asked: list[list[str]] = []
        self.size = size

    def __call__(self, prompts: Any) -> dict[str, Conditioning]:
        self.asked.append(list(prompts))
        return {p: row(p, self.size) for p in prompts}


def test_only_what_is_not_there_is_encoded_once_each() -> None:
    kept, encode = Prompts(), Encoder()
    found = kept.rows(["a", "bb", "a"], encode)
    assert [float(r.prompt_embeds.mean()) for r in found] == [1, 2, 1] and found[0] is found[2]
    again = kept.rows(["bb", "ccc"], encode)
    assert encode.asked == [["a", "bb"], ["ccc"]] and again[0] is found[1]
    kept.rows(["a", "bb", "ccc"], encode)
    assert len(encode.asked) == 2, "nothing is asked for where all is there"


def test_what_was_asked_for_longest_ago_goes_first() -> None:
    kept, encode = Prompts(3 * 108), Encoder()
    for prompts in (["a"], ["bb"], ["ccc"], ["a"], ["dddd"]):
        kept.rows(prompts, encode)
    assert kept.bytes == 3 * 108 and len(kept) == 3
    kept.rows(["a", "ccc", "dddd"], encode)
    assert encode.asked[-1] == ["dddd"], "bb went"
    kept.rows(["bb"], encode)
    assert encode.asked[-1] == ["bb"]


def test_more_prompts_at_once_than_fit_are_all_given_in_order() -> None:
    kept, encode = Prompts(2 * 108), Encoder()
    prompts = ["a" * k for k in (5, 1, 4, 2, 3, 5)]
    assert [float(r.prompt_embeds.mean()) for r in kept.rows(prompts, encode)] == [5, 1, 4, 2, 3, 5]
    assert len(kept) == 2 and kept.bytes == 216
    large = Prompts(100)
    assert len(large.rows(["a"], encode)) == 1 and len(large) == 0 and large.bytes == 0


def test_a_slice_counts_as_what_it_was_cut_from() -> None:
    whole = torch.zeros(4, 10, 8)
    assert size_of(Conditioning(whole[:1])) == 4 * 10 * 8 * 4
    assert size_of(Conditioning(whole[:1], pooled=whole[0, :1])) == 4 * 10 * 8 * 4  # the same memory, once
    assert size_of(row("a")) == 108


def test_captions_by_the_thousand_take_bounded_memory_and_no_bit_changes(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tiny.encode_prompts(["a red bird", "", "a blue fish"])
    one = size_of(tiny.encode_prompts(["a red bird"]))
    assert tiny._prompts.limit == LIMIT == 64 << 20
    monkeypatch.setattr(tiny, "_prompts", Prompts(4 * one))
    for k in range(12):
        tiny.encode_prompts([f"picture {k}", ""])
        assert tiny._prompts.bytes <= 4 * one
    again = tiny.encode_prompts(["a red bird", "", "a blue fish"])
    assert torch.equal(first.prompt_embeds, again.prompt_embeds) and again.prompts == first.prompts
    with tiny.prompts_anew():
        tiny.encode_prompts(["a red bird"])
        assert len(tiny._prompts) == 1, "what other encoders made is kept apart"
    assert len(tiny._prompts) == 4


def test_forgetting_is_no_change_and_bending_what_is_kept_is(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "_prompts", Prompts(2 * size_of(tiny.encode_prompts([""]))))
    tiny.encode_prompts(["first"])
    intact = Intact(tiny)
    tiny.encode_prompts(["second", "third"])
    assert intact.changes() == []
    intact = Intact(tiny)
    tiny._prompts._kept["third"].prompt_embeds.add_(1)
    assert any("third" in change for change in intact.changes())
