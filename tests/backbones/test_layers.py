"""Layer ids: every name of the peer means the peer's activation; presets; costs; listing from a config alone."""

# long: one table and all that is read from it
from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

import gate
from gate.backbone import Backbone
from gate.backbones import capture, config_layers, resolve_layers
from gate.backbones.aliases import canonical, peer_name, presets
from gate.backbones.layers import layer_paths
from gate.errors import ConfigurationError, UsageError
from gate.screening.config import ScreenConfig

PEER = Path(__file__).parent / "peer_layers"


def _peer(name: str) -> tuple[dict[str, Any], UNet2DConditionModel]:
    listed = json.loads((PEER / f"{name}.json").read_text())
    torch.manual_seed(0)
    return listed, UNet2DConditionModel.from_config(listed["unet_config"]).eval()  # type: ignore[return-value]


def _run(unet: nn.Module, listed: dict[str, Any]) -> Tensor:
    made = torch.Generator().manual_seed(1)
    config: Any = unet.config
    added = {}
    if config["addition_embed_type"]:
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        added = {
            "text_embeds": torch.randn(2, pooled, generator=made),
            "time_ids": torch.ones(2, 6),
        }
    text = torch.randn(listed["input"]["encoder_hidden_states"], generator=made)
    x = torch.randn(listed["input"]["sample"], generator=made)
    output: Tensor = unet(
        x,
        listed["input"]["timestep"],
        encoder_hidden_states=text,
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
    return output


@pytest.mark.parametrize(("name", "count"), [("sd15", 197), ("sdxl", 612)])
def test_every_id_of_the_peer_is_one_of_ours_with_its_shape(name: str, count: int) -> None:
    listed, unet = _peer(name)
    known = layer_paths(unet)
    ours = {peer: canonical(peer, known) for peer in listed["layers"]}
    assert len(set(ours.values())) == len(ours) == count
    with torch.no_grad(), capture(unet, list(listed["layers"])) as seen:
        _run(unet, listed)
    for peer, shape in listed["layers"].items():
        assert list(seen[peer].shape) == shape, peer
        assert peer_name(ours[peer]) == peer
    assert [peer_name(layer) for layer in seen] == list(listed["layers"])  # the forward's order


def test_the_peer_s_activations_are_what_their_names_say() -> None:
    """Each against a computation of its own on the modules, not against our hooks."""
    listed, unet = _peer("sd15")
    head = "up-level1-repeat1-"
    block: Any = unet.get_submodule("up_blocks.1.attentions.1.transformer_blocks.0")
    resnet: Any = unet.get_submodule("up_blocks.1.resnets.1")
    given: dict[str, Any] = {}
    for name, module in (("block", block), ("resnet", resnet)):
        module.register_forward_pre_hook(
            lambda m, a, k, name=name: given.__setitem__(name, (a, k)), with_kwargs=True
        )
    with torch.no_grad(), capture(unet, list(listed["layers"])) as seen:
        output = _run(unet, listed)

        def tokens(layer: str) -> Tensor:
            return seen[head + layer].flatten(2).transpose(1, 2)

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(2, (4, -1)).transpose(1, 2)  # type: ignore[no-untyped-call,no-any-return]

        (x,), options = given["block"]
        text = options["encoder_hidden_states"]
        normed = block.norm1(x)
        for letter in "qkv":
            assert torch.equal(
                tokens(f"vit-block0-self-{letter}"), getattr(block.attn1, f"to_{letter}")(normed)
            )
        q, k, v = (heads(tokens(f"vit-block0-self-{letter}")) for letter in "qkv")
        weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1)
        torch.testing.assert_close(seen[head + "vit-block0-self-map"], weights)
        after = x + block.attn1.to_out[0]((weights @ v).transpose(1, 2).flatten(2))
        q = heads(block.attn2.to_q(block.norm2(after)))
        torch.testing.assert_close(heads(tokens("vit-block0-cross-q")), q, rtol=1e-4, atol=1e-5)
        k, v = heads(block.attn2.to_k(text)), heads(block.attn2.to_v(text))
        weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1)
        torch.testing.assert_close(seen[head + "vit-block0-cross-map"], weights, rtol=1e-4, atol=1e-5)
        after = after + block.attn2.to_out[0]((weights @ v).transpose(1, 2).flatten(2))
        wide = block.ff.net[0](block.norm3(after))
        torch.testing.assert_close(tokens("vit-block0-ffn-inner"), wide, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            tokens("vit-block0-out"), after + block.ff.net[2](wide), rtol=1e-4, atol=1e-5
        )

        before = given["resnet"][0][0]
        skip = resnet.conv_shortcut(before) if resnet.conv_shortcut is not None else before
        torch.testing.assert_close(seen[head + "res-out"], skip + seen[head + "res-increment"])
        assert torch.equal(seen["unet-out"], output)
        assert torch.equal(seen["unet-after-conv-in"], unet.conv_in(seen["unet-in"]))


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_table_in_the_docs_is_whole_and_true(name: str) -> None:
    listed, unet = _peer(name)
    known = layer_paths(unet)
    page = (Path(__file__).parents[2] / "docs" / "layers.md").read_text(encoding="utf-8")
    lines = set(page.splitlines())
    assert all(f"| `{peer}` | `{canonical(peer, known)}` |" in lines for peer in listed["layers"])


def test_presets_are_the_peer_s_own_sets() -> None:
    sets = {
        "sd15": {
            "paper": [
                "up-level0-upsampler-out",
                "up-level1-upsampler-out",
                "up-level2-upsampler-out",
                "up-level3-repeat2-vit-out",
            ],
            "practical": [
                "up-level1-repeat1-vit-block0-cross-q",
                "up-level1-repeat2-res-out",
                "up-level2-repeat1-vit-block0-cross-q",
                "up-level3-repeat0-vit-block0-self-k",
            ],
            "dift": ["up-level1-upsampler-out"],
        },
        "sdxl": {
            "paper": ["up-level0-upsampler-out", "up-level1-upsampler-out", "up-level2-repeat2-res-out"],
            "practical": [
                "up-level0-repeat0-vit-block5-out",
                "up-level0-repeat0-vit-block7-out",
                "up-level1-repeat0-vit-block0-out",
                "up-level1-repeat0-vit-block0-cross-q",
            ],
            "dift": ["up-level1-upsampler-out"],
        },
    }
    for name, expected in sets.items():
        listed, unet = _peer(name)
        for preset, layers in expected.items():
            with torch.no_grad(), capture(unet, [preset]) as ours, capture(unet, layers) as theirs:
                _run(unet, listed)
            pairs = zip(ours.values(), theirs.values(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs), (name, preset)


def test_attentions_that_are_no_transformers_have_the_peer_s_names_too() -> None:
    known = dict.fromkeys(["up1.attention0.q", "up1.attention0.map", "up1.attention0"], "")
    peers = ["up-level1-repeat0-vit-block0-cross-q", "up-level1-repeat0-vit-block0-cross-map"]
    assert resolve_layers(peers, known) == ("up1.attention0.q", "up1.attention0.map")


def test_dift_s_index_is_a_stage() -> None:
    known = layer_paths(_peer("sd15")[1])
    assert resolve_layers(["up_ft_index=2", "up_ft_index1", "up_ft0"], known) == ("up2", "up1", "up0")
    with pytest.raises(UsageError, match="Unknown layer 'up_ft_index=7'"):
        resolve_layers(["up_ft_index=7"], known)


def test_a_peer_s_misspelt_id_is_an_error_with_its_own_neighbours() -> None:
    known = layer_paths(_peer("sd15")[1])
    with pytest.raises(UsageError, match="Did you mean 'up-level1-repeat1-vit-block0-cross-q'"):
        resolve_layers(["up-level1-repeat1-vit-block0-cros-q"], known)
    with pytest.raises(UsageError, match="Unknown layer"):
        resolve_layers(["up-level0-repeat0-vit-out"], known)  # no attention at that level


def test_a_preset_without_layers_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="practical names no layer"):
        presets("practical", {"up0": "up_blocks.0"})
    with pytest.raises(ConfigurationError, match="No layer is chosen"):
        resolve_layers([], {"up0": "up_blocks.0"})


def test_the_peer_s_layer_files_are_read_as_they_are(tmp_path: Path, tiny: Backbone) -> None:
    file = tmp_path / "config_15_practical.json"
    file.write_text(json.dumps({"up-level1-repeat2-res-out": True, "up-level2-repeat1-vit-out": False}))
    config = ScreenConfig(layers=(str(file), "mid"))
    assert config.layers == ("up-level1-repeat2-res-out", "mid")
    assert resolve_layers(config.layers, tiny.layer_paths) == ("up1.resnet2", "mid")
    file.write_text(json.dumps(["up1"]))
    assert ScreenConfig(layers=(str(file),)).layers == ("up1",)
    for wrong in ("{}", "[1]", "nothing"):
        file.write_text(wrong)
        with pytest.raises(UsageError, match="config_15_practical.json"):
            ScreenConfig(layers=(str(file),))


# FLOPs up to a layer over the forward's, Stable Diffusion 1.5 at 512 px: counted apart from this code
SHARES = {
    "mid": 0.33,
    "up-level0-upsampler-out": 0.36,
    "up-level1-repeat1-vit-block0-cross-q": 0.45,
    "up-level1-upsampler-out": 0.55,
    "up-level2-repeat1-vit-block0-cross-q": 0.65,
    "up-level2-upsampler-out": 0.75,
    "up-level3-repeat0-vit-block0-self-k": 0.80,
    "up-level3-repeat2-vit-out": 1.00,
}


def test_a_config_alone_gives_ids_shapes_and_costs(tmp_path: Path) -> None:
    listed, _ = _peer("sd15")
    sizes = {
        "sample_size": 64,
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
    }
    config = {**listed["unet_config"], **sizes, "_class_name": "UNet2DConditionModel"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    rows = {row.id: row for row in config_layers(str(tmp_path / "config.json"))}
    assert rows == {row.id: row for row in config_layers(str(tmp_path))}
    for name, share in SHARES.items():
        assert rows[canonical(name, {k: r.path for k, r in rows.items()})].cost == pytest.approx(
            share, abs=0.006
        )
    assert (rows["up1"].channels, rows["up1"].stride) == (1280, 2)
    assert (rows["up1.attention0.block0.cross.map"].channels, rows["up1.attention0"].stride) == (8, 4)
    assert rows["attention"].channels == 77 and rows["out"].cost == pytest.approx(1, abs=1e-3)
    costs = [row.cost for row in rows.values()]
    assert costs[:-1] == sorted(costs[:-1]) and costs[0] == 0


def test_a_config_of_no_denoiser_is_told(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for text, error, match in (
        ("{}", UsageError, "no _class_name"),
        ('{"_class_name": "AutoencoderKL"}', ConfigurationError, "no blocks whose places"),
        (
            '{"_class_name": "UNet2DConditionModel", "attention_head_dim": [1, 2]}',
            ConfigurationError,
            "cannot be built from this config",
        ),
    ):
        file.write_text(text)
        with pytest.raises(error, match=match):
            config_layers(str(file))


def test_layers_are_listed_without_weights(tmp_path: Path, tiny: Backbone) -> None:
    (tmp_path / "unet").mkdir()
    shutil.copy(tiny.source / "model_index.json", tmp_path)
    shutil.copy(tiny.source / "unet" / "config.json", tmp_path / "unet")
    rows = config_layers(str(tmp_path))
    assert rows == tiny.layers() and [row.id for row in rows] == list(tiny.layer_paths)
    widths = json.loads((tmp_path / "unet" / "config.json").read_text())["block_out_channels"]
    assert {r.id: r.channels for r in rows}["up3"] == widths[0]


def test_maps_are_extracted_per_head_and_screened_as_channels(tiny: Backbone) -> None:
    from gate.data import load_data

    scenes = load_data("scenes-held-out", n=4, size=tiny.image_size)
    name = "up2.attention0.block0.cross.map"
    made = tiny.extract(scenes, layers=[name, "attention"], batch_size=3)
    assert made["up-level2-repeat0-vit-block0-cross-map"] is made[name]
    _, heads, positions, words = made[name].shape
    row = {row.id: row for row in tiny.layers()}[name]
    assert heads == row.channels and words == 32 and positions == (16 // row.stride) ** 2
    torch.testing.assert_close(made[name].sum(-1), torch.ones(4, heads, positions))
    assert made["attention"].shape[:2] == (4, 32)
    with torch.no_grad():
        request = tiny.batch(scenes.samples).request(50, 0)
        feature = tiny.denoise(request, [name]).features[name]
    assert feature.shape == (4, heads * words, 16 // row.stride, 16 // row.stride)
    torch.testing.assert_close(feature.flatten(2)[:, 3], made[name][:, 0, :, 3], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_screening_on_attention_maps(tmp_path: Path) -> None:
    done = gate.screen(
        techniques=["prompt"],
        layers=["attention", "up-level1-repeat0-vit-block0-self-map", "practical"],
        samples=16,
        timesteps=[50],
        seeds=1,
        resamples=200,
        image_samples=0,
        workers=1,
        output=str(tmp_path / "run"),
    )
    assert done.results["axes"]["layer"][:2] == ["attention", "up1.attention0.block0.self.map"]
    assert any(note.startswith("A channel of attention is a token") for note in done.results["notes"])
