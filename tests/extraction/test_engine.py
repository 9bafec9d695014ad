"""Chunks over processes: each once, errors told, nobody waited for in vain; settings that leave nothing behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from gate.backbone import Backbone
from gate.backbones import load_backbone
from gate.data import load_data
from gate.errors import ConfigurationError, UsageError
from gate.extraction.engine import Work, features_of, over_processes, running
from gate.extraction.epilogue import Epilogue
from gate.extraction.plan import Setting, cost_of, dtype_of, usual_setting
from gate.registry import create_technique
from gate.sample import SampleSet
from gate.technique import Technique

Tick = Callable[[int], None]
TWO = Setting(4, processes=2, threads=1)


def work_of(backbone: Backbone, *names: str, layers: tuple[str, ...] = ("up1",)) -> Work:
    techniques = {name: create_technique(name) if name != "vanilla" else Technique() for name in names}
    return Work(backbone, techniques, layers, dict.fromkeys(techniques, 50), 0, Epilogue())


@pytest.mark.parametrize("setting", [Setting(4), TWO])
def test_every_chunk_is_worked_on_once_and_rows_are_told(setting: Setting, tmp_path: Path) -> None:
    def work(chunks: Iterator[int], tick: Tick) -> None:
        for k in chunks:
            (tmp_path / f"{k}").open("x").close()  # a second time would raise
            tick(10)

    told: list[int] = []
    over_processes(range(7), work, setting, told.append)
    assert sorted(int(f.name) for f in tmp_path.iterdir()) == list(range(7))
    assert sum(told) == 70


@pytest.mark.parametrize("setting", [Setting(4), TWO])
def test_an_error_ends_the_others_and_is_told_as_it_is(setting: Setting) -> None:
    def work(chunks: Iterator[int], tick: Tick) -> None:
        for k in chunks:
            if k == 1:
                raise UsageError("no")

    with pytest.raises(UsageError, match="^no$"):
        over_processes(range(4), work, setting, lambda _: None)


@pytest.mark.parametrize(
    "end", [lambda: os._exit(0), lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: 1 / 0]
)
def test_a_process_that_dies_is_told(end: Callable[[], None]) -> None:
    def work(chunks: Iterator[int], tick: Tick) -> None:
        for k in chunks:
            if k == 2:
                end()

    with pytest.raises(ConfigurationError, match=r"^Extraction stopped: it"):
        over_processes(range(4), work, TWO, lambda _: None)


def test_features_are_those_of_extract_whatever_the_batch_and_the_setting(
    tiny: Backbone, scenes: SampleSet
) -> None:
    few = scenes[:6]
    work = work_of(tiny, "prompt", layers=("up1", "up1.attention0.block0.cross.map", "attention"))
    wanted = tiny.extract(few.samples, layers=work.layers, technique="prompt", timestep=50, batch_size=6)
    for setting in (Setting(6, threads=torch.get_num_threads()), Setting(2), Setting(4, channels_last=True)):
        with running(tiny, setting):
            found = features_of(work, "prompt", few, setting.batch)
        for layer in work.layers:
            assert found[layer].shape == wanted[layer].shape
            torch.testing.assert_close(found[layer], wanted[layer], rtol=1e-4, atol=1e-5)
    assert next(tiny.denoiser.conv_in.parameters()).is_contiguous()


def test_threads_and_layout_are_put_back(tiny: Backbone) -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), running(tiny, Setting(4, threads=1, channels_last=True)):
        assert torch.get_num_threads() == 1
        assert tiny.denoiser.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        raise ZeroDivisionError
    assert torch.get_num_threads() == before and tiny.denoiser.conv_in.weight.is_contiguous()


@pytest.mark.slow
def test_a_compiled_forward_is_cut_and_gives_the_same(scenes: SampleSet, tmp_path: Path) -> None:
    """Through the compiler's own graph: what comes after the last layer is dead code, and not in it."""
    from small_pipelines import build
    from torch._dynamo.backends.common import aot_autograd

    from gate.backbones.compiled import compiled

    backbone = load_backbone(str(build("unet", tmp_path)), device="cpu")
    every = sum(isinstance(module, torch.nn.Conv2d) for module in backbone.denoiser.modules())
    convolutions: list[int] = []

    def count(graph: torch.fx.GraphModule, _: object) -> object:
        convolutions.append(sum("convolution" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    samples = load_data("scenes-held-out", n=3, size=backbone.image_size).samples
    request = backbone.batch(samples).request(50, 0)
    layers = ["up0", "mid.attention0.block0.cross.q"]
    with torch.no_grad():
        plain = backbone.reach(request, layers)
        with compiled(backbone, backend=aot_autograd(fw_compiler=count, inference_compiler=count)):
            made = backbone.reach(request, layers)
            fewer = backbone.reach(backbone.batch(samples[:2]).request(50, 0), layers)
        assert "reach" not in vars(backbone) and torch.equal(
            backbone.reach(request, layers)["up0"], plain["up0"]
        )
    assert set(made) == set(layers) and all(torch.equal(made[k], plain[k]) for k in layers)
    assert all(torch.equal(fewer[k], plain[k][:2]) for k in layers)
    assert len(convolutions) == 1, "a last, smaller batch is not compiled for"
    assert 0 < convolutions[0] < every - 3


def test_maps_and_transformers_are_not_compiled(tiny: Backbone, scenes: SampleSet) -> None:
    from gate.backbones.compiled import compiled

    request = tiny.batch(scenes[:1].samples).request(50, 0)
    with compiled(tiny), pytest.raises(ConfigurationError, match="attention is a map"):
        tiny.reach(request, ["attention"])


def test_the_rule_is_the_screen_s_own(tiny: Backbone) -> None:
    setting = usual_setting(tiny)
    assert setting.batch == 32 and not setting.channels_last and not setting.compiled
    assert usual_setting(tiny, "fast").channels_last


def test_precision_settles_the_dtype() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert dtype_of("exact", cpu) == "float32" and dtype_of("exact", gpu) == "auto"
    assert dtype_of("fast", cpu) == "bfloat16" and dtype_of("fast", gpu) == "float16"
    assert dtype_of("fast", cpu, "float16") == "float16"
    with pytest.raises(UsageError, match="exact computes in"):
        dtype_of("fast", cpu, "float32")


@pytest.mark.slow
def test_costs_are_counted_and_add_up_as_the_cost_model_says(tiny: Backbone) -> None:
    layers = ("up1",)
    one = cost_of(tiny, [Technique()], layers)
    reached = next(row.cost for row in tiny.layers() if row.id == "up1")
    assert one.reached == reached and one.encode > 0 and one.forward > 0
    assert one.planned == pytest.approx(one.encode + one.forward * reached)
    assert one.naive == pytest.approx(one.encode + one.forward)
    three = cost_of(
        tiny, [Technique(), create_technique("prompt"), create_technique("noise-ensemble", members=3)], layers
    )
    calls = create_technique("noise-ensemble", members=3).cost.total
    assert three.planned == pytest.approx(one.encode + (2 + calls) * one.forward * reached)
    assert three.naive == pytest.approx(3 * one.encode + (2 + calls) * one.forward)
