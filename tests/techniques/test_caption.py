"""Captions by an image-to-text model that the test builds, and depth for a ControlNet by a depth estimator."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gate.adapters.control_images import ControlImages
from gate.adapters.drawing import CONTROLS, drawer
from gate.adapters.formats import CONTROL_IMAGES
from gate.backbone import Backbone
from gate.errors import UnsuitableError, UsageError
from gate.registry import create_technique
from gate.sample import SampleSet
from gate.testing import check_technique

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "bird", "on", "grass")


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> str:
    """BLIP with random weights, in the layout of the public repository."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor

    folder = tmp_path_factory.mktemp("blip")
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        **shape,
        "vocab_size": len(WORDS),
        "encoder_hidden_size": 32,
        "projection_dim": 32,
        "bos_token_id": 2,
    }
    ends = {"sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0, "max_position_embeddings": 64}
    model = BlipForConditionalGeneration(
        BlipConfig(text_config={**text, **ends}, vision_config={**shape, "image_size": 32, "patch_size": 8})
    )
    model.save_pretrained(folder)
    BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def test_on_tiny_it_is_the_scenes_own_caption(tiny: Backbone, scenes: SampleSet) -> None:
    own, prompt = create_technique("caption"), create_technique("prompt")
    batch = tiny.batch(scenes[:3].samples, everyone=scenes)
    ours, theirs = (t.condition(batch.neutral, batch) for t in (own, prompt))
    assert torch.equal(ours.prompt_embeds, theirs.prompt_embeds) and ours.prompts == theirs.prompts
    silent = dataclasses.replace(
        scenes, samples=tuple(dataclasses.replace(s, caption=None) for s in scenes.samples)
    )
    with pytest.raises(UnsuitableError, match="own captions") as error:
        own.check(tiny, silent)
    assert "caption[model=" in error.value.fix


def test_a_models_captions_are_prompts_and_state(captioner: str, tiny: Backbone, scenes: SampleSet) -> None:
    few = scenes[:3]
    technique = create_technique("caption", model=captioner)
    report = check_technique(technique, tiny, few)
    assert report.ok, str(report)
    technique.fit(tiny, few)
    batch = tiny.batch(few.samples, everyone=few)
    prompts = technique.condition(batch.neutral, batch).prompts
    assert prompts != tuple(s.caption for s in few) and all(set(p.split()) <= set(WORDS) for p in prompts)
    again: Any = create_technique("caption", model="no/such-model")
    again.load_state(technique.state())
    assert again.condition(batch.neutral, batch).prompts == prompts


def test_a_captioner_that_is_missing_says_how_to_get_it(tiny: Backbone, scenes: SampleSet) -> None:
    with pytest.raises(UnsuitableError, match="hf download somebody/captioner"):
        create_technique("caption", model="somebody/captioner").check(tiny, scenes)


@pytest.fixture(scope="module")
def estimator(tmp_path_factory: pytest.TempPathFactory) -> str:
    """DPT with random weights."""
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    folder = tmp_path_factory.mktemp("dpt")
    torch.manual_seed(0)
    config = DPTConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16,
    )  # fmt: skip
    DPTForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "dpt"
    return str(folder)


def test_depth_spans_all_of_a_byte_and_is_drawn_once(
    estimator: str, tiny: Backbone, scenes: SampleSet
) -> None:
    image = scenes[0].image
    depth = drawer("depth", estimator)(image)
    assert depth.shape == image.shape and depth.min() == 0 and depth.max() == 255
    assert (depth[..., 0] == depth[..., 1]).all()
    images = ControlImages(estimator)
    batch = tiny.batch(scenes[:2].samples, everyone=scenes)
    first, second = images.of("depth", batch), images.of("depth", batch)
    assert torch.equal(first, second) and first.shape == (2, 3, 64, 64)
    assert torch.equal((first[0, 0] * 255).round().byte(), torch.from_numpy(depth[..., 0]))


def test_depth_without_an_estimator_is_a_sentence(tiny: Backbone, scenes: SampleSet, tmp_path: Path) -> None:
    from diffusers import ControlNetModel

    ControlNetModel.from_unet(
        tiny.denoiser, conditioning_embedding_out_channels=(16, 32, 96)
    ).save_pretrained(tmp_path)
    missing = create_technique(
        "controlnet", controls="depth", weights=str(tmp_path), depth_model="somebody/depth"
    )
    with pytest.raises(UnsuitableError, match="hf download somebody/depth"):
        missing.check(tiny, scenes)
    assert (*CONTROLS, "depth") == CONTROL_IMAGES
    with pytest.raises(UsageError, match="choose canny"):
        drawer("dept")


@pytest.mark.parametrize("kind", ["captioner", "network"])
def test_what_is_not_here_is_said_without_asking_the_network(
    kind: str, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    from diffusers import ControlNetModel

    from gate.adapters.networks import load_network
    from gate.adapters.vision import load_vision
    from gate.errors import MissingWeightsError

    asked: list[object] = []

    def refuse(*host: object, **_: object) -> None:
        asked.append(host)
        raise socket.gaierror("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between tries
    with pytest.raises(MissingWeightsError, match="hf download nobody/nothing"):
        if kind == "captioner":
            load_vision("nobody/nothing", "image-to-text", "captioner", words=True)
        else:
            load_network(ControlNetModel, "nobody/nothing", "ControlNet", tiny)
    assert not asked
