"""`gate.capture` where something else happens to the denoiser: each works, or is refused in a sentence that is true."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_pipelines import UNET, WIDTH
from torch import Tensor, nn

import gate
from gate.backbones.layers import layer_paths
from gate.errors import UsageError


def _unet() -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(**UNET, in_channels=4, out_channels=4, cross_attention_dim=WIDTH).eval()


def _sd3() -> Any:
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=8,
    ).eval()


def _given(denoiser: Any, seed: int = 0, rows: int = 1) -> dict[str, Any]:
    made = torch.Generator().manual_seed(seed)
    text = torch.randn(rows, 5, WIDTH, generator=made)
    if hasattr(denoiser, "down_blocks"):
        x = torch.randn(rows, 4, 16, 16, generator=made)
        return {"sample": x, "timestep": 50, "encoder_hidden_states": text}
    return {
        "hidden_states": torch.randn(rows, 4, 8, 8, generator=made),
        "encoder_hidden_states": text,
        "pooled_projections": torch.randn(rows, WIDTH, generator=made),
        "timestep": torch.full((rows,), 50.0),
    }


@pytest.fixture(params=[_unet, _sd3], ids=["unet", "sd3"])
def denoiser(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """Nothing that was compiled stays."""
    yield
    torch.compiler.reset()


def _inner(denoiser: Any) -> list[str]:
    """A block, what is in it, and a map."""
    known = layer_paths(denoiser)
    unet = "up0" in known
    layers = (
        ["up0.attention0.block0", "up0.attention0.block0.self.q"] if unet else ["block1", "block1.self.q"]
    )
    return [*layers, f"{layers[0]}.ff.inner", f"{layers[0]}.self.map"]


def _hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def _plain(denoiser: Any, layers: list[str], **given: Any) -> dict[str, Tensor]:
    with torch.no_grad(), gate.capture(denoiser, layers) as seen:
        denoiser(**(given or _given(denoiser)))
    return dict(seen)


def test_a_control_net_of_a_unet() -> None:
    from diffusers import ControlNetModel

    unet = _unet()
    net: Any = ControlNetModel.from_unet(unet, conditioning_channels=3).eval()
    known = layer_paths(net)
    assert "mid" in known and "out" not in known and not any(k.startswith("up") for k in known)
    given = {**_given(unet), "controlnet_cond": torch.randn(1, 3, 128, 128)}
    with torch.no_grad(), gate.capture(net, [*known]) as seen:
        down, middle = net(**given, return_dict=False)
    assert set(seen) == set(known) and seen["mid"].shape[-2:] == middle.shape[-2:]
    block = net.controlnet_mid_block
    with torch.no_grad():
        assert torch.equal(block(seen["mid"]), middle)
        with gate.capture(unet, ["up0"]) as steered:
            residuals = {"mid_block_additional_residual": middle + 1}
            unet(**_given(unet), down_block_additional_residuals=[d + 1 for d in down], **residuals)
    assert not torch.equal(steered["up0"], _plain(unet, ["up0"])["up0"])


def test_a_control_net_of_a_transformer() -> None:
    from diffusers import SD3ControlNetModel

    config = {k: v for k, v in _sd3().config.items() if not k.startswith("_")}
    net: Any = SD3ControlNetModel(**config).eval()
    known = [k for k in layer_paths(net) if k != "attention"]
    assert "block1" in known and "out" not in known
    given = {**_given(net), "controlnet_cond": torch.randn(1, 4, 8, 8)}
    with torch.no_grad(), gate.capture(net, known) as seen:
        (made,) = net(**given, return_dict=False)
        for i, residual in enumerate(made):
            tokens = seen[f"block{i}"].flatten(2).transpose(1, 2)
            assert torch.equal(net.controlnet_blocks[i](tokens), residual)


def test_fused_projections(denoiser: Any) -> None:
    layers = [k for k in layer_paths(denoiser) if k.endswith((".q", ".k", ".v"))]
    apart = _plain(denoiser, layers)
    denoiser.fuse_qkv_projections()
    fused = _plain(denoiser, layers)
    assert any(":" in path for k, path in layer_paths(denoiser).items() if k in layers)
    for layer in layers:
        torch.testing.assert_close(fused[layer], apart[layer])
    denoiser.unfuse_qkv_projections()
    assert all(torch.equal(v, apart[layer]) for layer, v in _plain(denoiser, layers).items())


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "way", ["in place", *(pytest.param(w, marks=pytest.mark.slow) for w in ("wrapped", "whole"))]
)
@pytest.mark.parametrize(
    "first", [pytest.param(True, marks=pytest.mark.slow), False], ids=["captured first", "run first"]
)
def test_compiled_denoisers_are_captured_as_they_are_written(way: str, first: bool, denoiser: Any) -> None:
    layers = _inner(denoiser)
    expected, before = _plain(denoiser, layers), _hooks(denoiser)
    called = denoiser
    if way == "whole":
        called = torch.compile(denoiser, backend="eager")
    else:
        stack = (
            denoiser.up_blocks[0].attentions
            if hasattr(denoiser, "up_blocks")
            else denoiser.transformer_blocks
        )
        for i, block in enumerate(stack):
            if way == "in place":
                block.compile(backend="eager")
            else:
                stack[i] = torch.compile(block, backend="eager")
    with torch.no_grad():
        if not first:
            called(**_given(denoiser))
        with (
            pytest.warns(UserWarning, match=r"runs .* without torch.compile") if way != "whole" else _quiet(),
            gate.capture(called, layers) as seen,
        ):
            called(**_given(denoiser))
        held = dict(seen)
        called(**_given(denoiser, seed=1))  # no hook of ours was compiled in
    assert all(torch.equal(held[layer], expected[layer]) for layer in layers)
    assert all(held[layer] is seen[layer] for layer in layers) and _hooks(denoiser) == before


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first opened, first closed", "nested"])
def test_what_is_compiled_runs_compiled_again_once_all_blocks_are_left(order: tuple[int, int]) -> None:
    """As blocks of two threads are left: in any order."""
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    called = torch.compile(lambda x: x.sin() + 1, backend=backend)
    called(torch.ones(2))
    assert len(graphs) == 1
    blocks = [gate.capture(_unet(), ["up0"]) for _ in range(2)]
    for block in blocks:
        block.__enter__()
    for i in order:
        called(torch.ones(3, 3 + i))  # another shape would be compiled anew
        blocks[i].__exit__(None, None, None)
    assert len(graphs) == 1
    called(torch.ones(5, 5, 5))
    assert len(graphs) == 2


def _quiet() -> Any:
    return warnings.catch_warnings()


def test_a_copy_made_inside_the_block_is_not_captured(denoiser: Any) -> None:
    layers, before = _inner(denoiser), _hooks(denoiser)
    with torch.no_grad(), gate.capture(denoiser, layers, steps="all") as seen:
        twin = copy.deepcopy(denoiser)
        denoiser(**_given(denoiser))
        held = dict(seen)
        plain = twin(**_given(denoiser, seed=1), return_dict=False)[0]
        assert seen.calls == 1 and all(seen[layer] is held[layer] for layer in layers)
        again = twin(**_given(denoiser, seed=1), return_dict=False)[0]
    assert torch.equal(plain, again) and _hooks(denoiser) == before == _hooks(twin)
    assert torch._C._len_torch_function_stack() == 0


def test_two_threads_capture_their_own_forwards(denoiser: Any) -> None:
    layers = _inner(denoiser)
    expected = [_plain(denoiser, layers, **_given(denoiser, seed=seed)) for seed in (0, 1)]
    found: list[list[dict[str, Tensor]]] = [[], []]
    together = threading.Barrier(2)

    def work(seed: int) -> None:
        with torch.no_grad(), gate.capture(denoiser, layers) as seen:
            for _ in range(5):
                together.wait(30)
                denoiser(**_given(denoiser, seed=seed))
                found[seed].append(dict(seen))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for seed in (0, 1):
        assert len(found[seed]) == 5
        for seen in found[seed]:
            assert all(torch.equal(seen[layer], expected[seed][layer]) for layer in layers)


def test_forwards_of_another_thread_alone_are_told(denoiser: Any) -> None:
    with (
        pytest.raises(UsageError, match="ran in another thread than the one that opened gate.capture"),
        gate.capture(denoiser, ["latent"]) as seen,
    ):
        thread = threading.Thread(target=lambda: denoiser(**_given(denoiser)))
        thread.start()
        thread.join(60)
        assert not seen and not seen.calls


@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward after"])
def test_layers_and_maps_under_gradient_checkpointing(inside: bool, denoiser: Any) -> None:
    layers = [*_inner(denoiser), "attention"]
    slopes = []
    for checkpointed in (False, True):
        if checkpointed:
            denoiser.enable_gradient_checkpointing()
            denoiser.train()
        denoiser.zero_grad()
        given = _given(denoiser)
        x = next(iter(given.values())).requires_grad_()
        with gate.capture(denoiser, layers) as seen:
            output = denoiser(**given, return_dict=False)[0]
            held = dict(seen)
            loss = output.square().mean() + sum(v.square().mean() for v in held.values())
            if inside:
                denoiser(**_given(denoiser, seed=1))
                later = dict(seen)
                loss.backward()  # blocks run again here, of the first forward
                assert all(seen[layer] is later[layer] for layer in layers)
        if not inside:
            loss.backward()
        assert x.grad is not None
        slopes.append((x.grad, *[p.grad for p in denoiser.parameters() if p.grad is not None]))
    assert len(slopes[0]) == len(slopes[1]) > 10
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)
