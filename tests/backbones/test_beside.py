"""What a denoiser is given beside latent, time and text: as diffusers' pipelines give it, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from odd_pipelines import flux_fill, pixel_unet, text_unet
from small_pipelines import ddpm
from torch import Tensor
from typer.testing import CliRunner

import gate
from gate.backbones import config_layers
from gate.backbones.families.flux import pack, unpack
from gate.cli import app
from gate.data import load_data
from gate.errors import ConfigurationError
from gate.sample import Sample, SampleSet

TEXT = "a cat"


def _load(folder: Path, **options: Any) -> Any:
    return gate.load_backbone(str(folder), device="cpu", dtype="float32", **options)


def _called(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[dict[str, Any], Tensor]:
    """What diffusers' own pipeline gives its denoiser in its first step, and what that answers."""
    import inspect

    from diffusers import DiffusionPipeline
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    # latents of an image are drawn there, and are the mean here
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean)
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    encode = (
        pipeline.vae.encode
    )  # its image is laid out channels last, which rounds otherwise: to 2e-4 of a grey one
    monkeypatch.setattr(pipeline.vae, "encode", lambda x: encode(x.contiguous()))
    denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    names = list(inspect.signature(type(denoiser).forward).parameters)[1:]
    seen: list[tuple[dict[str, Any], Tensor]] = []
    denoiser.register_forward_hook(
        lambda m, a, k, o: seen.append(({**dict(zip(names, a, strict=False)), **k}, o[0])), with_kwargs=True
    )
    pipeline(prompt=TEXT, output_type="latent", num_inference_steps=2, **options)
    return seen[0]


def _ours(backbone: Any, x: Tensor, t: Tensor) -> Tensor:
    """The family's call for the same latent and time."""
    batch = backbone.batch(load_data("scenes-held-out", n=1, size=backbone.image_size).samples)
    given = backbone.encode_prompts([TEXT] * len(x))
    with torch.no_grad():
        made: Tensor = backbone.call(
            x, torch.as_tensor(t).reshape(-1).expand(len(x)), given, batch.request(50, 0)
        )
    return made


def _grey(size: int) -> Any:
    from PIL import Image

    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8))


@pytest.mark.parametrize("width", [8, 9])
def test_a_distilled_unet_is_told_guidance_1_as_its_pipeline_tells_it(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import LCMScheduler

    folder = text_unet(
        tmp_path,
        "LatentConsistencyModelPipeline",
        LCMScheduler(original_inference_steps=50),
        time_cond_proj_dim=width,
    )
    given, output = _called(folder, monkeypatch, guidance_scale=1.0)
    backbone = _load(folder)
    assert torch.equal(_ours(backbone, given["sample"], given["timestep"]), output)
    with torch.no_grad():  # and it does matter
        without = backbone.denoiser(given["sample"], given["timestep"], given["encoder_hidden_states"]).sample
    assert float((without - output).abs().max() / output.abs().max()) > 1e-4


def test_an_inpainting_unet_is_given_a_whole_mask_and_a_grey_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    folder = text_unet(tmp_path, "StableDiffusionInpaintPipeline", channels=9)
    mask = Image.new("L", (64, 64), 255)
    given, output = _called(
        folder, monkeypatch, image=_grey(64), mask_image=mask, height=64, width=64, guidance_scale=1.0
    )
    backbone = _load(folder)
    x = given["sample"][:, :4]
    assert torch.equal(backbone.with_beside(x), given["sample"])
    assert torch.equal(_ours(backbone, x, given["timestep"]), output)
    listed = {row.id: row for row in config_layers(str(folder))}
    assert set(listed) == set(backbone.layer_paths) and listed["latent"].channels == 9


def test_instruct_pix2pix_is_given_no_image_as_its_own_guidance_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = text_unet(tmp_path, "StableDiffusionInstructPix2PixPipeline", channels=8)
    given, output = _called(
        folder, monkeypatch, image=_grey(64), guidance_scale=7.5, image_guidance_scale=1.5
    )
    x = given["sample"][2:]  # text and image, image alone, neither: the last is told neither
    assert float(x[:, 4:].abs().max()) == 0.0
    backbone = _load(folder)
    assert torch.equal(backbone.with_beside(x[:, :4]), x)
    batch = backbone.batch(load_data("scenes-held-out", n=1, size=64).samples)
    with torch.no_grad():
        ours = backbone.call(
            x[:, :4], given["timestep"].reshape(1), backbone.encode_prompts([""]), batch.request(50, 0)
        )
    torch.testing.assert_close(ours, output[2:], rtol=0, atol=1e-6)  # a batch of three, and of one


def test_flux_fill_is_given_a_grey_image_and_a_whole_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    folder = flux_fill(tmp_path)
    mask = Image.new("L", (64, 64), 255)
    given, output = _called(
        folder, monkeypatch, image=_grey(64), mask_image=mask, height=64, width=64, guidance_scale=1.0
    )
    backbone = _load(folder, image_size=64)
    side = backbone.side // 2
    x = unpack(given["hidden_states"][..., :16], side, side)
    assert torch.equal(backbone.with_beside(pack(x), x), given["hidden_states"])
    ours = _ours(backbone, x, given["timestep"] * 1000)
    torch.testing.assert_close(ours, unpack(output, side, side), rtol=0, atol=1e-6)
    assert backbone.layers()


REFUSED = {
    "an image to enlarge": ("StableDiffusionUpscalePipeline", {"channels": 7, "num_class_embeds": 100}),
    "a depth map": ("StableDiffusionDepth2ImgPipeline", {"channels": 5}),
    "an image to measure": ("MarigoldDepthPipeline", {"channels": 8}),
    "an image embedding": (
        "StableUnCLIPPipeline",
        {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 8},
    ),
    "a class or a noise level": ("StableDiffusionPipeline", {"num_class_embeds": 10}),
}


@pytest.mark.parametrize(
    "wanted", [pytest.param(w, marks=() if w == "an image to enlarge" else pytest.mark.slow) for w in REFUSED]
)
def test_what_has_no_neutral_value_is_refused_by_name_and_its_layers_are_listed(
    wanted: str, tmp_path: Path
) -> None:
    pipeline, options = REFUSED[wanted]
    folder = text_unet(tmp_path, pipeline, **options)
    with pytest.raises(ConfigurationError, match=rf"is a {pipeline}.*{wanted}"):
        _load(folder)
    listed = CliRunner().invoke(app, ["list", "layers", "--backbone", str(folder), "--format", "json"])
    assert listed.exit_code == 0, listed.output
    assert wanted in listed.stderr and {"up0", "mid"} <= {row["name"] for row in json.loads(listed.stdout)}
    screened = CliRunner().invoke(app, ["screen", "--backbone", str(folder), "--techniques", "prompt"])
    assert screened.exit_code == 3 and "bug" not in screened.stderr


def test_flux_with_a_control_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="FluxControlPipeline.*a control image"):
        _load(flux_fill(tmp_path, "FluxControlPipeline", beside=16), image_size=64)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pixel_unet(tmp_path_factory.mktemp("labelled"), "DDPMPipeline", ddpm(), num_class_embeds=20)


def test_a_class_labelled_unet_is_told_each_image_s_own_class(labelled: Path) -> None:
    backbone = _load(labelled)
    samples = load_data("scenes-held-out", n=4, size=16)
    batch = backbone.batch(samples.samples)
    assert batch.neutral.labels.tolist() == [sample.label for sample in samples]
    request = batch.request(50, 0)
    with torch.no_grad():
        ours = backbone.predict(request)
        theirs = backbone.denoiser(request.x_t, request.t, class_labels=batch.neutral.labels).sample
        other = backbone.denoiser(request.x_t, request.t, class_labels=1 + batch.neutral.labels).sample
    assert torch.equal(ours, theirs) and not torch.equal(ours, other)
    with pytest.raises(ConfigurationError, match="one of its 20 classes for every image"):
        backbone.batch([Sample(np.zeros((16, 16, 3), np.uint8))])
    with pytest.raises(ConfigurationError, match="one of its 20 classes"):
        backbone.batch([Sample(np.zeros((16, 16, 3), np.uint8), label=20)])


def test_a_technique_does_not_see_the_labels_that_its_model_is_told(labelled: Path) -> None:
    from gate.passes import Plan
    from gate.technique import Technique

    backbone, samples = _load(labelled), load_data("scenes-held-out", n=2, size=16)
    seen: list[Any] = []

    class Curious(Technique):
        def condition(self, conditioning: Any, batch: Any) -> Any:
            seen.append((batch.samples[0].label, conditioning.labels.tolist()))
            return conditioning

    plan = Plan(backbone, Curious(), SampleSet(samples.samples, classes=samples.classes), (50,))
    from gate.passes import stream

    list(stream(plan))
    assert seen == [(None, [sample.label for sample in samples])]


@pytest.mark.slow
def test_a_class_labelled_unet_is_screened(labelled: Path, tmp_path: Path) -> None:
    command = [
        "screen",
        "--backbone",
        str(labelled),
        "--techniques",
        "noise-ensemble[members=2]",
        "--samples",
        "8",
    ]
    command += [
        "--seeds",
        "1",
        "--probes",
        "",
        "--image-samples",
        "0",
        "--resamples",
        "200",
        "--timesteps",
        "50",
    ]
    done = CliRunner().invoke(app, [*command, "--workers", "1", "--output", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output


def test_the_layers_of_a_denoiser_without_a_family_are_listed(tmp_path: Path) -> None:
    from diffusers import AuraFlowTransformer2DModel, DiTTransformer2DModel

    for cls, options in (
        (
            DiTTransformer2DModel,
            {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8},
        ),
        (
            AuraFlowTransformer2DModel,
            {"num_mmdit_layers": 1, "num_single_dit_layers": 1, "num_attention_heads": 2},
        ),
    ):
        model = cls(**options)
        model.save_config(tmp_path / cls.__name__)
        listed = CliRunner().invoke(
            app, ["list", "layers", "--backbone", str(tmp_path / cls.__name__), "--format", "json"]
        )
        assert listed.exit_code == 0, listed.output
        rows = {row["name"]: row for row in json.loads(listed.stdout)}
        with gate.capture(model, list(rows), strict=False):
            pass  # every one of them is a place
        key = next(name for name in rows if name.endswith("self.k"))
        assert rows[key]["channels"] == model.get_submodule(rows[key]["path"]).out_features
