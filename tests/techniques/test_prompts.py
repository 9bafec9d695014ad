"""prompt, generic-prompt and shuffled-prompt: which text reaches the denoiser."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from gate.errors import UnsuitableError, UsageError
from gate.registry import create_technique
from gate.request import Batch
from gate.sample import SampleSet
from gate.techniques.shuffled_prompt import next_caption


def test_prompt_is_the_caption_in_its_template(batch: Batch) -> None:
    captions = tuple(s.caption for s in batch.samples)
    assert create_technique("prompt").condition(batch.neutral, batch).prompts == captions
    dressed = create_technique("prompt", template="a photo: {caption}", quality="sharp")
    assert dressed.condition(batch.neutral, batch).prompts[0] == f"a photo: {captions[0]}, sharp"


def test_same_text_gives_the_same_bits(batch: Batch) -> None:
    one = create_technique("prompt").condition(batch.neutral, batch)
    same = batch.backbone.encode_prompts([s.caption or "" for s in batch.samples])
    assert torch.equal(one.prompt_embeds, same.prompt_embeds)


def test_a_template_without_a_slot_is_refused() -> None:
    with pytest.raises(UsageError, match="generic-prompt"):
        create_technique("prompt", template="a photo")


def test_prompt_needs_captions(batch: Batch, samples: SampleSet) -> None:
    bare = dataclasses.replace(samples, samples=tuple(dataclasses.replace(s, caption=None) for s in samples))
    with pytest.raises(UnsuitableError, match=r"captions\.csv"):
        create_technique("prompt").check(batch.backbone, bare)
    create_technique("guidance-pag").check(batch.backbone, bare)


def test_generic_prompt_is_one_text_for_all(batch: Batch) -> None:
    given = create_technique("generic-prompt", prompt="a drawing").condition(batch.neutral, batch)
    assert given.prompts == ("a drawing",) * len(batch)


def with_captions(samples: SampleSet, captions: list[str]) -> SampleSet:
    base = samples.samples[0]
    made = tuple(dataclasses.replace(base, caption=c, id=f"{i:016x}") for i, c in enumerate(captions))
    return dataclasses.replace(samples, samples=made)


def test_shuffled_prompt_is_a_derangement(samples: SampleSet) -> None:
    many = with_captions(samples, [f"caption {i}" for i in range(17)])
    passed_on = [next_caption(s, many, 0) for s in many]
    assert sorted(passed_on) == sorted(s.caption or "" for s in many)
    assert all(text != s.caption for text, s in zip(passed_on, many, strict=True))
    assert passed_on == [next_caption(s, tuple(reversed(many.samples)), 0) for s in many]
    assert passed_on != [next_caption(s, many, 1) for s in many]


def test_shuffled_prompt_never_gives_the_own_text(samples: SampleSet) -> None:
    twins = with_captions(samples, ["same"] * 9 + ["other"])
    for s in twins:
        assert next_caption(s, twins, 3) == ("same" if s.caption == "other" else "other")


def test_shuffled_prompt_refuses_equal_captions(batch: Batch, samples: SampleSet) -> None:
    with pytest.raises(UnsuitableError, match="different captions"):
        create_technique("shuffled-prompt").check(batch.backbone, with_captions(samples, ["same"] * 4))
