"""A learned word in both public layouts; a word with another's vector means the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gate.backbone import Backbone
from gate.errors import ConfigurationError, UnsuitableError, UsageError
from gate.registry import create_technique
from gate.request import Batch
from gate.sample import SampleSet
from gate.testing import check_technique


@pytest.fixture()
def batch(tiny: Backbone, scenes: SampleSet) -> Batch:
    return tiny.batch(scenes[:2].samples, everyone=scenes)


def vectors_of(backbone: Backbone, text: str) -> torch.Tensor:
    """(k, d), the embeddings of the words of `text`."""
    encoder: Any = backbone.components["text_encoder"]
    ids = backbone.tokenizer(text, add_special_tokens=False).input_ids
    table: torch.Tensor = encoder.get_input_embeddings().weight
    return table[ids].detach().clone()


def embeds(technique: Any, batch: Batch) -> torch.Tensor:
    with technique.attach(batch.backbone):
        found: torch.Tensor = technique.condition(batch.neutral, batch).prompt_embeds
        return found


@pytest.mark.parametrize("words", ["bird", "red bird"])
def test_a_word_with_the_vectors_of_others_means_what_they_mean(
    words: str, batch: Batch, tmp_path: Path
) -> None:
    vectors = vectors_of(batch.backbone, words)
    file = tmp_path / "learned_embeds.safetensors"  # diffusers: {token: (d,) or (k, d)}
    save_file({"<thing>": vectors.squeeze(0).contiguous()}, file)
    technique = create_technique(
        "textual-inversion", weights=str(tmp_path), template="a photo of a {token} {prompt}"
    )
    expected = batch.backbone.encode_prompts([f"a photo of a {words}"]).prompt_embeds
    torch.testing.assert_close(embeds(technique, batch)[:1], expected)


def test_the_web_uis_layout_is_named_after_its_file(batch: Batch, tmp_path: Path) -> None:
    file = tmp_path / "my-style.safetensors"  # {"emb_params": (k, d)}
    save_file({"emb_params": vectors_of(batch.backbone, "red bird")}, file)
    technique: Any = create_technique("textual-inversion", weights=str(file))
    torch.testing.assert_close(
        embeds(technique, batch)[:1], batch.backbone.encode_prompts(["red bird"]).prompt_embeds
    )
    assert list(technique._load(batch.backbone)) == ["my-style"]
    named: Any = create_technique("textual-inversion", weights=str(file), token="<s>")
    assert list(named._load(batch.backbone)) == ["<s>"]


def test_it_joins_the_prompt_to_its_left_and_leaves_nothing_behind(batch: Batch, tmp_path: Path) -> None:
    save_file({"<thing>": vectors_of(batch.backbone, "bird")}, tmp_path / "learned_embeds.safetensors")
    backbone = batch.backbone
    technique = create_technique(f"prompt+textual-inversion[weights={tmp_path}]")
    before = backbone.encode_prompts(["a <thing>"]).prompt_embeds
    tokenizer, encoder = backbone.tokenizer, backbone.components["text_encoder"]
    expected = backbone.encode_prompts([f"bird {s.caption}" for s in batch.samples]).prompt_embeds
    torch.testing.assert_close(embeds(technique, batch), expected)
    assert backbone.tokenizer is tokenizer and backbone.components["text_encoder"] is encoder
    assert torch.equal(backbone.encode_prompts(["a <thing>"]).prompt_embeds, before)


def test_the_contract_holds(tiny: Backbone, scenes: SampleSet, tmp_path: Path) -> None:
    save_file({"<thing>": vectors_of(tiny, "red bird")}, tmp_path / "learned_embeds.safetensors")
    report = check_technique(create_technique("textual-inversion", weights=str(tmp_path)), tiny, scenes[:3])
    assert report.ok, str(report)


def test_missing_foreign_and_taken(tiny: Backbone, batch: Batch, scenes: SampleSet, tmp_path: Path) -> None:
    with pytest.raises(UnsuitableError, match="hf download somebody/word learned_embeds.safetensors"):
        create_technique("textual-inversion", weights="somebody/word").check(tiny, scenes)
    file = tmp_path / "sdxl.safetensors"  # two encoders' vectors
    save_file({"clip_l": torch.zeros(1, 768), "clip_g": torch.zeros(1, 1280)}, file)
    with pytest.raises(ConfigurationError, match=r"holds clip_."):
        create_technique("textual-inversion", weights=str(file)).check(tiny, scenes)
    save_file({"bird</w>": vectors_of(tiny, "bird")}, tmp_path / "learned_embeds.safetensors")
    taken = create_technique("textual-inversion", weights=str(tmp_path))
    with pytest.raises(UsageError, match="already in tokenizer"), taken.attach(tiny):
        pass
    with pytest.raises(UsageError, match="template must hold"):
        create_technique("textual-inversion", template="{token}")
