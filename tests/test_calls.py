"""Calls that are shared: answered only where the denoiser is the very same, and charged all the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from gate.calls import Memo, Untouched, counted, digest
from gate.request import Batch, Conditioning, Request
from tests.closed_form import ClosedForm, flat_samples, known_noise

__all__ = ["known_noise"]
pytestmark = pytest.mark.usefixtures("known_noise")


@pytest.fixture
def batch() -> Batch:
    return ClosedForm().batch(flat_samples(2).samples)


def denoiser() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).eval().requires_grad_(False)


def in_place(module: Any) -> None:
    module[0].weight.add_(0)


def attribute(module: Any) -> None:
    module[1].p = 0.25


def hook(module: Any) -> None:
    module[0].register_forward_hook(lambda *_: None)


def hook_at_the_root(module: Any) -> None:
    module.register_forward_pre_hook(lambda *_: None)


def forward(module: Any) -> None:
    module[0].forward = lambda x: x


def another_parameter(module: Any) -> None:
    module[0].weight = nn.Parameter(module[0].weight.clone())


def another_class(module: Any) -> None:
    module[0].__class__ = nn.Identity


def part_added(module: Any) -> None:
    module.append(nn.Identity())


@pytest.mark.parametrize(
    "change",
    [in_place, attribute, hook, hook_at_the_root, forward, another_parameter, another_class, part_added],
)
def test_every_change_of_a_module_is_seen(change: Callable[[Any], None]) -> None:
    module = denoiser()
    untouched = Untouched(module)
    assert untouched.holds()
    change(module)
    assert not untouched.holds()


def test_what_is_put_back_is_untouched_again_and_counters_are_not_seen() -> None:
    backbone = ClosedForm()
    untouched = Untouched(backbone.denoiser)
    with counted(backbone):
        assert untouched.holds()
        handle = backbone.denoiser.register_forward_hook(lambda *_: None)
        assert not untouched.holds()
        handle.remove()
    assert untouched.holds()


def test_functions_that_were_replaced_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    untouched = Untouched(denoiser())
    with torch.autocast("cpu", torch.bfloat16):
        assert not untouched.holds()
    assert untouched.holds()
    monkeypatch.setattr(functional, "scaled_dot_product_attention", lambda *_: None)
    assert not untouched.holds()


def test_every_field_that_a_denoiser_reads_tells_requests_apart(batch: Batch) -> None:
    base = batch.request(1, 0)
    row = torch.ones(2, 1)
    others = [
        base.with_(x_t=base.x_t + 1),
        base.with_(t=base.t + 1),
        base.with_(t_condition=base.t + 1),
        base.with_(residuals={"down": [row]}),
        *(
            base.with_(conditioning=base.conditioning.replace(**{f.name: given}))
            for f, given in zip(
                dataclasses.fields(Conditioning),
                [row, row, row, row, row, row, ("a", "b"), (row,)],
                strict=True,
            )
        ),
    ]
    assert len({digest(r) for r in [base, *others]}) == 1 + len(others)
    assert digest(base) == digest(base.with_(seed=7, eps=base.eps + 1, origin="sampled", features=False))
    with pytest.raises(TypeError, match="holds a set"):
        digest(base.with_(residuals={"down": {1}}))


@pytest.mark.parametrize("files", [False, True])
def test_an_equal_call_is_answered_with_the_same_bits_and_charged(
    batch: Batch, files: bool, tmp_path: Path
) -> None:
    backbone: Any = batch.backbone
    memo, other = (Memo(backbone, folder=tmp_path if files else None) for _ in range(2))
    request = batch.request(1, 0)
    memo.own = request
    with torch.no_grad(), counted(backbone) as counter, memo.serving(backbone):
        first = backbone.denoise(request, ("sum",))
        again = backbone.denoise(request.with_(seed=5), ("sum",))
        plain = backbone.denoise(request.with_(features=False))
    assert counter.rows == 2 and memo.rows == 4 and memo.seconds > 0
    for found in (again, plain):
        assert torch.equal(found.prediction, first.prediction) and torch.equal(found.x0, first.x0)
    assert torch.equal(again.features["sum"], first.features["sum"]) and not plain.features
    assert backbone.recall is None
    with torch.no_grad(), counted(backbone) as counter, other.serving(backbone):  # as another process
        assert torch.equal(backbone.denoise(request, ("sum",)).features["sum"], first.features["sum"])
    assert counter.rows == (0 if files else 2)


def test_features_are_kept_of_a_pass_s_own_request_alone(batch: Batch) -> None:
    backbone: Any = batch.backbone
    memo = Memo(backbone)
    request = batch.request(1, 0)
    with torch.no_grad(), counted(backbone) as counter, memo.serving(backbone):
        backbone.denoise(request, ("sum",))  # nobody's own: its prediction is kept
        backbone.denoise(request)
        assert counter.rows == 2
        memo.own = request
        backbone.denoise(request, ("sum",))
        assert counter.rows == 4
        backbone.denoise(request, ("sum",))
    assert counter.rows == 4


def test_no_answer_for_gradients_residuals_a_changed_denoiser_or_beyond_the_limit(batch: Batch) -> None:
    backbone: Any = batch.backbone
    request = batch.request(1, 0)

    def made(ask: Request, memo: Memo) -> int:
        with counted(backbone) as counter, memo.serving(backbone):
            backbone.denoise(ask)
        return counter.rows

    memo = Memo(backbone)
    with torch.no_grad():
        assert [made(request, memo) for _ in range(2)] == [2, 0]
        assert made(request.with_(residuals={"down": torch.ones(1)}), memo) == 2
        backbone.denoiser.weak = True
        assert made(request, memo) == 2
        del backbone.denoiser.weak
        assert made(request, memo) == 0
        small = Memo(backbone, limit=request.x_t.nbytes)
        assert [made(request, small) for _ in range(2)] == [2, 0]
        assert [made(batch.request(1, 1), small) for _ in range(2)] == [2, 2]
    assert made(request, memo) == 2
