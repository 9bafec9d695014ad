"""Canonical layer ids of a denoiser, read off its modules: every activation has exactly one name and one place.

UNets: `latent`, `in`, `down1.resnet0`, `down1.resnet0.increment`, `down1.attention0`, `down1.downsample`, `down1`,
`mid.attention0`, `up2.attention1.block0.cross.q`, `up2.upsample`, `out`. A block's own id (`up2`) is its output, after
the sampler. Transformers: `block7`, `block7.adaln`, `block7.self.k`, `block7.ff.inner`, `single3`, ... `out`.
A place is a module path, with `:in` for what the module is given and `:map`, `:self-map`, `:cross-map` for the softmax
weights inside an attention module; `:attention` is the mean of all cross maps of the up path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from gate.backbones.aliases import canonical, opened, presets
from gate.errors import ConfigurationError, unknown_name

MEAN_MAP = "attention"
STREAMS = {  # a transformer's stacks of blocks, as diffusers' classes call them
    "noise_refiner": "refiner",
    "transformer_blocks": "block",
    "joint_transformer_blocks": "block",
    "double_stream_blocks": "block",
    "blocks": "block",
    "visual_transformer_blocks": "block",
    "layers": "block",
    "single_transformer_blocks": "single",
    "single_stream_blocks": "single",
}
EMBEDDERS = ("x_embedder", "img_in", "patch_embed", "pos_embed")
NARROW = ("net.2", "w2", "linear_out", "conv_point")  # a feed-forward's way back; what it is given is `inner`
Places = Iterator[tuple[str, str]]


def layer_paths(denoiser: nn.Module) -> dict[str, str]:
    """Layer id -> place, in the order of the forward. denoiser: any of diffusers'; meta weights will do."""
    found = dict(_unet(denoiser) if hasattr(denoiser, "down_blocks") else _transformer(denoiser))
    crosses = [layer for layer in found if layer.endswith("cross.map")]
    if crosses:
        found[MEAN_MAP] = f":{MEAN_MAP}"
    return found


def cross_maps(paths: Mapping[str, str]) -> list[str]:
    """The places of the cross maps behind the paper's attention features: those of the up path, where there is one."""
    crosses = {layer: path for layer, path in paths.items() if layer.endswith("cross.map")}
    up = [path for layer, path in crosses.items() if layer.startswith("up")]
    return up or list(crosses.values())


def resolve_layers(wanted: str | Iterable[str], known: Mapping[str, str]) -> tuple[str, ...]:
    """Layer ids for ids, aliases, presets and JSON layer files (aliases.py); one name is a list of one.

    Raises UsageError with near matches for any other name.
    """
    chosen: dict[str, None] = {}
    for name in opened([wanted] if isinstance(wanted, str) else wanted):
        for layer in presets(name, known) or [canonical(name, known)]:
            if layer not in known:
                raise unknown_name("layer", name, known, listing="gate list layers")
            chosen[layer] = None
    if not chosen:
        raise ConfigurationError(
            "No layer is chosen; name some, or a preset: paper, practical, dift. See: gate list layers"
        )
    return tuple(chosen)


def _unet(unet: nn.Module) -> Places:
    yield "latent", ":in"
    yield "in", "conv_in"
    for way in ("down", "mid", "up"):
        stages = [("mid", "mid_block")] if way == "mid" else []
        if way != "mid":
            stages = [(f"{way}{i}", f"{way}_blocks.{i}") for i in range(len(getattr(unet, f"{way}_blocks")))]
        for layer, path in stages:
            module = unet.get_submodule(path) if path.split(".")[0] in dict(unet.named_children()) else None
            if module is not None:
                yield from _stage(module, layer, path)
    yield "out", "conv_out"


def _stage(stage: nn.Module, layer: str, path: str) -> Places:
    attentions = [a for a in getattr(stage, "attentions", None) or []]
    for i, resnet in enumerate(getattr(stage, "resnets", None) or []):
        if hasattr(resnet, "conv2"):
            yield f"{layer}.resnet{i}.increment", f"{path}.resnets.{i}.conv2"
        yield f"{layer}.resnet{i}", f"{path}.resnets.{i}"
        if i < len(attentions) and attentions[i] is not None:
            yield from _attention(attentions[i], f"{layer}.attention{i}", f"{path}.attentions.{i}")
    for sampler in ("downsample", "upsample"):
        if getattr(stage, f"{sampler}rs", None):
            yield f"{layer}.{sampler}", f"{path}.{sampler}rs.0"
    yield layer, path


def _attention(module: nn.Module, layer: str, path: str) -> Places:
    """A stage's attention: transformer blocks between two projections, or one attention module alone."""
    blocks = getattr(module, "transformer_blocks", None)
    for j, block in enumerate(blocks or []):
        yield from _inside(block, f"{layer}.block{j}", f"{path}.transformer_blocks.{j}")
        yield f"{layer}.block{j}", f"{path}.transformer_blocks.{j}"
    if blocks is None:
        yield from _projections(module, layer, path)
        yield f"{layer}.map", f"{path}:map"
    elif hasattr(module, "proj_out"):
        yield f"{layer}.increment", f"{path}.proj_out"
    yield layer, path


def _transformer(denoiser: nn.Module) -> Places:
    children = dict(denoiser.named_children())
    yield "latent", ":in"
    embedder = next((name for name in EMBEDDERS if name in children), None)
    if embedder:
        yield "in", embedder
    for name, short in STREAMS.items():
        for i, block in enumerate(children.get(name, ())):  # type: ignore[arg-type,var-annotated]
            layer, path = f"{short}{i}", f"{name}.{i}"
            attention = _child(block, "attn1", "attn", "attention")
            if attention:
                yield f"{layer}.adaln", f"{path}.{attention}:in"
            yield from _inside(block, layer, path, joint=short != "refiner")
            yield layer, path
    yield "out", ""


def _inside(block: nn.Module, layer: str, path: str, joint: bool = False) -> Places:
    """What is in a transformer block: attentions and the feed-forward.

    joint: whether the block's attention reads image and text at once, where it has none of its own for the text.
    """
    own, other = _child(block, "attn1", "attn", "attention"), _child(block, "attn2")
    crossed = bool(other) and _is_cross(getattr(block, str(other)))
    if own:
        yield from _projections(getattr(block, own), f"{layer}.self", f"{path}.{own}")
        if crossed or not joint:
            if "Linear" not in type(getattr(getattr(block, own), "processor", None)).__name__:
                yield f"{layer}.self.map", f"{path}.{own}:map"
        else:
            yield f"{layer}.self.map", f"{path}.{own}:self-map"
            yield f"{layer}.cross.map", f"{path}.{own}:cross-map"
        yield f"{layer}.self", f"{path}.{own}"
    if other and crossed:
        yield f"{layer}.cross.q", f"{path}.{other}.to_q"
        yield f"{layer}.cross.map", f"{path}.{other}:map"
        yield f"{layer}.cross", f"{path}.{other}"
    elif other:  # a second self-attention (SD 3.5 medium, or a UNet block without text)
        yield from _projections(getattr(block, other), f"{layer}.self2", f"{path}.{other}")
        yield f"{layer}.self2.map", f"{path}.{other}:map"
        yield f"{layer}.self2", f"{path}.{other}"
    wide = _child(block, "ff", "feed_forward", "img_mlp")
    if wide:
        inner = next((n for n in NARROW if _has(getattr(block, wide), n)), None)
        if inner:
            yield f"{layer}.ff.inner", f"{path}.{wide}.{inner}:in"
        yield f"{layer}.ff", f"{path}.{wide}"
    elif hasattr(block, "act_mlp"):  # Flux's single blocks: beside the attention, not after it
        yield f"{layer}.ff.inner", f"{path}.act_mlp"


def _projections(attention: nn.Module, layer: str, path: str) -> Places:
    for letter in "qkv":
        if getattr(attention, f"to_{letter}", None) is not None:
            yield f"{layer}.{letter}", f"{path}.to_{letter}"


def _is_cross(attention: nn.Module) -> bool:
    return bool(getattr(attention, "is_cross_attention", False))


def _child(module: nn.Module, *names: str) -> str | None:
    """The first of these that the module has."""
    return next((name for name in names if getattr(module, name, None) is not None), None)


def _has(module: nn.Module, path: str) -> bool:
    return path in dict(module.named_modules())
