"""Every family: a small random pipeline through the loader, against diffusers' own pipeline and plain hooks."""

# long: every family through the same questions
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_pipelines import PIPELINES, build

import gate
from gate.backbone import Backbone
from gate.backbones import config_layers, resolve_layers
from gate.backbones.families import families
from gate.backbones.families.flux import pack, unpack
from gate.backbones.families.qwen_image import BEFORE
from gate.data import load_data
from gate.request import Batch
from gate.testing import check_technique

SIZES = {"flux": 64, "qwen-image": 64, "z-image": 64, "flux2": 64}  # their configs name none
TEXT = [name for name in PIPELINES if name != "unconditional"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: build(family, tmp_path_factory.mktemp(family)) for family in PIPELINES}


@pytest.fixture(scope="session")
def backbones(folders: dict[str, Path]) -> dict[str, Backbone]:
    return {
        family: gate.load_backbone(str(folder), device="cpu", dtype="float32", image_size=SIZES.get(family))
        for family, folder in folders.items()
    }


def _batch(backbone: Backbone, n: int = 2) -> Batch:
    return backbone.batch(load_data("scenes-held-out", n=n, size=backbone.image_size).samples)


def test_every_family_has_a_pipeline_here() -> None:
    assert {f.family for f in families()} == set(PIPELINES)


@pytest.mark.parametrize("family", PIPELINES)
def test_layers_are_listed_without_weights_and_extracted_as_a_plain_hook_sees_them(
    family: str, backbones: dict[str, Backbone], folders: dict[str, Path]
) -> None:
    backbone = backbones[family]
    rows = {row.id: row for row in config_layers(str(folders[family]))}
    assert backbone.family == family and set(rows) == {row.id for row in backbone.layers()}
    chosen = resolve_layers(["paper"], backbone.layer_paths)
    assert chosen and set(chosen) <= set(rows)
    request = _batch(backbone).request(50, 0)
    with torch.no_grad():
        response = backbone.denoise(request, chosen)
        for layer in chosen:
            seen: list[Any] = []
            where, _, what = rows[layer].path.partition(":")
            module = backbone.denoiser.get_submodule(where)
            if what == "in":
                handle = module.register_forward_pre_hook(
                    lambda m, a, k, seen=seen: seen.append(a[0] if a else k["hidden_states"]),
                    with_kwargs=True,
                )
            else:
                handle = module.register_forward_hook(lambda m, a, o, seen=seen: seen.append(o))
            backbone.predict(request)
            handle.remove()
            feature = response.features[layer]
            assert feature.ndim == 4 and feature.shape[:2] == (2, rows[layer].channels)
            assert feature.shape[-1] == request.x_t.shape[-1] // rows[layer].stride
            assert bool(feature.isfinite().all())
            assert min(_differences(feature, seen[0])) == 0.0
    assert response.prediction.shape == request.x_t.shape and bool(response.x0.isfinite().all())


@pytest.mark.parametrize("family", PIPELINES)
def test_a_forward_that_stops_early_gives_the_same_bits_and_runs_no_more(
    family: str, backbones: dict[str, Backbone]
) -> None:
    backbone = backbones[family]
    rows = backbone.layers()
    request = _batch(backbone, 1).request(50, 0)
    ran: list[str] = []
    leaves = [m for m in backbone.denoiser.modules() if not list(m.children())]
    handles = [m.register_forward_hook(lambda *_: ran.append("leaf")) for m in leaves]
    with torch.no_grad():
        whole = backbone.activate(request, [row.id for row in rows])[1]
        calls = len(ran)
        for row in [*rows[:: max(1, len(rows) // 9)], rows[-1]]:
            ran.clear()
            stopped = backbone.reach(request, [row.id])
            assert torch.equal(stopped[row.id], whole[row.id]), row.id
            assert len(ran) < calls or row.cost > 0.9, row.id
        several = [row.id for row in rows[2:40:7]]
        stopped = backbone.reach(request, several)
        assert all(torch.equal(stopped[layer], whole[layer]) for layer in several)
    for handle in handles:
        handle.remove()


def _differences(feature: torch.Tensor, output: Any) -> list[float]:
    """From each tensor of a module's output: as it is, or as tokens (the last ones are the image's)."""
    outputs = output if isinstance(output, (tuple, list)) else [output]
    flat = feature.flatten(2).transpose(1, 2)
    found = []
    for tensor in outputs:
        if tensor.shape == feature.shape:
            found.append(float((tensor - feature).abs().max()))
        elif tensor.ndim == 3 and tensor.shape[1] >= flat.shape[1] and tensor.shape[2] == flat.shape[2]:
            n = flat.shape[1]
            found += [float((part - flat).abs().max()) for part in (tensor[:, -n:], tensor[:, :n])]
    return found


SCREENED = ("unet", "sdxl", "unconditional", "sd3", "flux")  # the others take the same way, slowly


@pytest.mark.parametrize(
    "family", [f if f in SCREENED else pytest.param(f, marks=pytest.mark.slow) for f in PIPELINES]
)
def test_three_techniques_are_screened(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    techniques = ["noise-ensemble[members=2]", "shared-timestep", "ddim-inversion[steps=2]"]
    if family in TEXT:
        techniques[1] = "prompt"
    done = gate.screen(
        techniques=techniques,
        backbone=str(folders[family]),
        image_size=SIZES.get(family),
        samples=8,
        timesteps=[50],
        seeds=1,
        probes=[],
        image_samples=0,
        resamples=200,
        device="cpu",
        workers=1,
        output=str(tmp_path / "run"),
    )
    assert {row["name"] for row in done.results["ranking"]} == set(techniques) and not done.results["skipped"]
    axes = done.results["axes"]
    assert 0 < axes["sigma"][0] < 1 and 0 < axes["alpha_bar"][0] < 1


@pytest.mark.parametrize("family", TEXT)
def test_a_call_is_what_the_pipeline_itself_makes(
    family: str, backbones: dict[str, Backbone], folders: dict[str, Path]
) -> None:
    """One step of diffusers' own pipeline: its denoiser's output equals ours at the same latent and time, to 0.0."""
    from diffusers import DiffusionPipeline

    backbone: Any = backbones[family]
    pipeline = DiffusionPipeline.from_pretrained(folders[family], local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    seen: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
    denoiser.register_forward_hook(lambda m, a, k, o: seen.append((a, k, o)), with_kwargs=True)
    text = "a cat"
    if family == "qwen-image":  # it counts the template's tokens by heart, of the real vocabulary
        pipeline.prompt_template_encode_start_idx = len(backbone.tokenizer(BEFORE).input_ids)
    pipeline(
        prompt=text, output_type="pt" if family == "pixel-unet" else "latent", **_options(family, backbone)
    )
    args, kwargs, output = seen[0]
    inputs = dict(zip(("x", "t"), args, strict=False))
    x = inputs.get("x", kwargs.get("hidden_states"))
    t = inputs.get("t", kwargs.get("timestep"))
    output = output[0]
    side = backbone.side
    if family in ("flux", "qwen-image"):
        x, output, t = unpack(x, side // 2, side // 2), unpack(output, side // 2, side // 2), t * 1000
    elif family == "flux2":
        x, output, t = (*(v.transpose(1, 2).reshape(len(v), -1, side, side) for v in (x, output)), t * 1000)
    elif family == "z-image":
        x, output, t = x[0][:, 0][None], -output[0][:, 0][None], 1000 - t * 1000
    elif family == "sana":
        t = t / backbone.denoiser.config.timestep_scale
    given = backbone.encode_prompts([text] * len(x))
    with torch.no_grad():
        ours = backbone.call(
            x, torch.as_tensor(t).reshape(-1).expand(len(x)), given, _batch(backbone, 1).request(50, 0)
        )
    assert float((ours - output).abs().max()) <= (1e-5 if family in ("qwen-image", "z-image") else 0.0)


def _options(family: str, backbone: Backbone) -> dict[str, Any]:
    size = {"height": backbone.image_size, "width": backbone.image_size}
    options: dict[str, Any] = {"num_inference_steps": 2, **size}
    if family == "qwen-image":
        return {**options, "true_cfg_scale": 1.0}
    if family == "flux":
        return {**options, "guidance_scale": 1.0}
    options["guidance_scale"] = 0.0 if family == "z-image" else 1.0
    if family in ("pixart", "sana", "pixel-unet"):
        options["clean_caption"] = False
    if family == "hunyuan-dit":
        options["original_size"] = (backbone.image_size, backbone.image_size)
    if family == "sana":
        options |= {"complex_human_instruction": None, "use_resolution_binning": False}
    if family in ("pixart", "hunyuan-dit"):
        options["use_resolution_binning"] = False
    return options


def test_packing_is_diffusers_own() -> None:
    from diffusers import FluxPipeline

    x = torch.randn(2, 4, 6, 8)
    theirs = FluxPipeline._pack_latents(x, 2, 4, 6, 8)
    assert torch.equal(pack(x), theirs) and torch.equal(unpack(theirs, 3, 4), x)


@pytest.mark.parametrize("family", PIPELINES)
def test_images_survive_normalising(family: str, backbones: dict[str, Backbone]) -> None:
    backbone: Any = backbones[family]
    x0 = _batch(backbone).x0
    assert x0.shape[-1] == backbone.side
    if backbone.vae is None:
        samples = load_data("scenes-held-out", n=2, size=backbone.image_size).samples
        assert torch.allclose(backbone.decode(x0), gate.backbone.pixels(samples), atol=1e-6)
    else:
        torch.testing.assert_close(backbone.normalise(backbone.denormalise(x0)), x0, rtol=1e-4, atol=1e-5)
        assert backbone.decode(x0).shape == (2, 3, backbone.image_size, backbone.image_size)


@pytest.mark.parametrize("family", TEXT)
def test_the_prompt_matters_and_its_neighbours_do_not(family: str, backbones: dict[str, Backbone]) -> None:
    backbone = backbones[family]
    batch = _batch(backbone)
    both, alone = backbone.encode_prompts(["a cat", ""]), backbone.encode_prompts(["a cat"])
    assert torch.equal(both.prompt_embeds[:1], alone.prompt_embeds)
    with torch.no_grad():
        plain, told = (backbone.predict(batch.request(50, 0, c)) for c in (batch.neutral, both))
    assert float((plain - told)[0].abs().max()) > 0
    torch.testing.assert_close(plain[1], told[1])


def test_the_unconditional_family_takes_no_prompt(backbones: dict[str, Backbone]) -> None:
    from gate.errors import UnsuitableError
    from gate.registry import create_technique

    backbone = backbones["unconditional"]
    samples = load_data("scenes-held-out", n=2, size=backbone.image_size)
    with pytest.raises(UnsuitableError, match="takes no prompt"):
        backbone.encode_prompts(["a cat"])
    with pytest.raises(UnsuitableError, match="is unconditional"):
        create_technique("prompt").check(backbone, samples)
    for text in TEXT:
        create_technique("guidance-cfg").check(backbones[text], samples)


def test_sdxl_is_told_sizes_and_the_empty_prompt_is_zeros(backbones: dict[str, Backbone]) -> None:
    given = backbones["sdxl"].encode_prompts(["", "a cat"])
    assert given.time_ids is not None and given.pooled is not None
    assert given.time_ids[0].tolist() == [64, 64, 0, 0, 64, 64]
    assert float(given.prompt_embeds[0].abs().max()) == float(given.pooled[0].abs().max()) == 0.0
    assert float(given.pooled[1].abs().max()) > 0


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
@pytest.mark.parametrize(
    "technique", ["prompt", "guidance-cfg", "timestep-ensemble", "ddim-inversion[steps=2]"]
)
def test_techniques_keep_their_contract_here(
    family: str, technique: str, backbones: dict[str, Backbone]
) -> None:
    backbone = backbones[family]
    report = check_technique(technique, backbone, load_data("scenes-held-out", n=4, size=backbone.image_size))
    # guided by a model of random weights, a latent does lose its image
    broken = {f.invariant for f in report.failures} - {"features still carry the image"}
    assert not broken, str(report)


@pytest.mark.parametrize("family", PIPELINES)
def test_half_precision_is_near_float32(
    family: str, backbones: dict[str, Backbone], folders: dict[str, Path]
) -> None:
    half = gate.load_backbone(
        str(folders[family]), device="cpu", dtype="bfloat16", image_size=SIZES.get(family)
    )
    assert _batch(half).x0.dtype == torch.float32  # rounded latents alone would move the eps error
    a, b = (x.predict(_batch(x).request(50, 0)).float() for x in (backbones[family], half))
    assert float((a - b).abs().max() / a.abs().max()) < 0.05


def test_a_stranger_s_broken_family_is_told_and_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    from gate.backbones import families as package

    odd = EntryPoint(name="odd", value="no_such_module:Odd", group=package.GROUP)
    monkeypatch.setattr(package, "entry_points", lambda group: [odd])
    package.families.cache_clear()
    package.plugins.cache_clear()
    try:
        assert "no_such_module" in str(package.plugins()["odd"])
        assert any(family.family == "unet" for family in package.families())
    finally:
        package.families.cache_clear()
        package.plugins.cache_clear()
