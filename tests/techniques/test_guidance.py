"""Guidance: the identities of each guider, the step it takes, and the denoiser it leaves behind."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from gate.adapters.guiders import GUIDERS, frequency_decoupled, new_guider
from gate.adapters.weakening import weak_stacks, weakened
from gate.errors import UsageError
from gate.registry import create_technique
from gate.request import Batch, Request, Response

torch.manual_seed(0)
STRONG, WEAK = torch.randn(2, 3, 4, 16, 16)
WEAK = STRONG + 0.1 * WEAK


def sampled(name: str, batch: Batch, t: int = 100, text: str | None = None) -> Response:
    """The guided prediction at t itself: that is what a sampled request gets."""
    technique = create_technique(name)
    request = batch.request(t, 0).with_(origin="sampled", features=False)
    if text is not None:
        request = request.with_(conditioning=batch.backbone.encode_prompts([text] * len(batch)))
    with torch.no_grad():
        return technique.denoise(request, batch.backbone.denoise)


def plain(batch: Batch, texts: list[str], t: int = 100) -> torch.Tensor:
    with torch.no_grad():
        return batch.backbone.denoise(batch.request(t, 0, batch.backbone.encode_prompts(texts))).prediction


def captions(batch: Batch) -> list[str]:
    return [s.caption or "" for s in batch.samples]


def test_cfg_is_its_equation_and_at_scale_one_the_conditional_prediction(batch: Batch) -> None:
    strong, weak = plain(batch, captions(batch)), plain(batch, [""] * len(batch))
    assert torch.equal(sampled("guidance-cfg[scale=1]", batch).prediction, strong)
    guided = sampled("guidance-cfg[scale=3]", batch).prediction
    assert torch.allclose(guided, weak + 3 * (strong - weak), atol=1e-6)


def test_a_given_prompt_is_kept(batch: Batch) -> None:
    strong, weak = plain(batch, ["a bird"] * len(batch)), plain(batch, [""] * len(batch))
    guided = sampled("guidance-cfg[scale=3]", batch, text="a bird").prediction
    assert torch.allclose(guided, weak + 3 * (strong - weak), atol=1e-6)


def test_without_a_prompt_to_guide_to_nothing_is_added(batch: Batch) -> None:
    guided = sampled("guidance-cfg[prompt='given']", batch).prediction
    assert torch.equal(guided, plain(batch, [""] * len(batch)))


@pytest.mark.parametrize("guider", list(GUIDERS))
def test_the_scale_without_effect_gives_the_stronger_prediction(guider: str, batch: Batch) -> None:
    off = GUIDERS[guider].off
    texts = captions(batch) if GUIDERS[guider].weakness == "prompt" else [""] * len(batch)
    technique = create_technique(f"guidance-{guider}", scale=off)
    assert technique.cost.per_pass == 2
    assert torch.equal(sampled(f"guidance-{guider}[scale={off}]", batch).prediction, plain(batch, texts))


@pytest.mark.parametrize("guider", list(GUIDERS))
def test_every_guider_acts(guider: str, batch: Batch) -> None:
    texts = captions(batch) if GUIDERS[guider].weakness == "prompt" else [""] * len(batch)
    guided = sampled(f"guidance-{guider}", batch).prediction
    assert float((guided - plain(batch, texts)).norm()) > 1e-6 * float(guided.norm())


@pytest.mark.parametrize("guider", ["pag", "seg", "slg"])
def test_guiders_away_from_a_weaker_denoiser_follow_their_papers(guider: str, batch: Batch) -> None:
    facts = GUIDERS[guider]
    strong = plain(batch, [""] * len(batch))
    with weakened(batch.backbone.denoiser, facts.weakness):
        weak = plain(batch, [""] * len(batch))
    assert not torch.equal(strong, weak)
    guided = sampled(f"guidance-{guider}", batch).prediction
    assert torch.allclose(guided, strong + facts.scale * (strong - weak), atol=1e-5)
    assert torch.equal(plain(batch, [""] * len(batch)), strong)


def test_autoguidance_weakens_more_than_one_block_and_keeps_the_prompt(batch: Batch) -> None:
    denoiser = batch.backbone.denoiser
    assert weak_stacks(denoiser, "block") == [
        f"up_blocks.1.attentions.{i}.transformer_blocks" for i in range(3)
    ]
    larger = SimpleNamespace(
        named_modules=denoiser.named_modules,
        config=SimpleNamespace(sample_size=64, block_out_channels=denoiser.config.block_out_channels),
    )
    assert weak_stacks(larger, "block") == ["mid_block.attentions.0.transformer_blocks"]
    assert len(weak_stacks(denoiser, "blocks")) == 4
    strong = plain(batch, ["a bird"] * len(batch))
    with weakened(denoiser, "blocks"):
        weak = plain(batch, ["a bird"] * len(batch))
    guided = sampled("guidance-auto", batch, text="a bird").prediction
    assert torch.allclose(guided, weak + 2 * (strong - weak), atol=1e-5)


def test_identity_attention_is_the_values(batch: Batch) -> None:
    attention = batch.backbone.denoiser.get_submodule("up_blocks.1.attentions.0.transformer_blocks.0.attn1")
    x = torch.randn(2, 4, attention.to_q.in_features)  # type: ignore[union-attr, arg-type]
    with torch.no_grad(), weakened(batch.backbone.denoiser, "scores"):
        got = attention(x)
    with torch.no_grad():
        expected = attention.to_out[0](attention.to_v(x))  # type: ignore[index, operator]
    assert torch.allclose(got, expected, atol=1e-6)
    assert "forward" not in vars(attention) and "_diffusers_hook" not in vars(attention)


def test_magnitude_aware_by_hand() -> None:
    technique = create_technique("guidance-mambo", scale=10)
    got = technique._combine(STRONG, WEAK, Shaped())  # type: ignore[attr-defined]
    for i in range(3):
        d = STRONG[i] - WEAK[i]
        w = 1 + 9 * torch.exp(-8 * d.norm() / WEAK[i].norm())
        assert torch.allclose(got[i], WEAK[i] + w * d, atol=1e-5)


def test_projected_guidance_is_orthogonal_to_the_stronger_prediction() -> None:
    got = create_technique("guidance-apg", scale=5)._combine(STRONG, WEAK, Shaped())  # type: ignore[attr-defined]
    push = (got - WEAK).flatten(1).double()
    along = (push * STRONG.flatten(1).double()).sum(1) / push.norm(dim=1) / STRONG.flatten(1).norm(dim=1)
    assert float(along.abs().max()) < 1e-5


def test_zero_star_rescales_the_weaker_prediction() -> None:
    got = create_technique("guidance-zero-star", scale=4)._combine(STRONG, WEAK, Shaped())  # type: ignore[attr-defined]
    share = (STRONG * WEAK).flatten(1).sum(1) / WEAK.flatten(1).square().sum(1)
    weak = WEAK * share.view(-1, 1, 1, 1)
    assert torch.allclose(got, weak + 4 * (STRONG - weak), atol=1e-4)


class Shaped:
    """As much of a request as a guider looks at."""

    t = torch.tensor([100] * 3)

    class batch:
        class backbone:
            schedule = range(1000)


def test_frequency_decoupled_is_cfg_at_equal_scales_and_splits_constant_from_checkerboard() -> None:
    both = frequency_decoupled(STRONG, WEAK, high=3, low=3)
    assert torch.allclose(both, WEAK + 3 * (STRONG - WEAK), atol=1e-5)
    constant, zero = torch.ones(1, 4, 16, 16), torch.zeros(1, 4, 16, 16)
    assert torch.allclose(frequency_decoupled(constant, zero, high=10, low=5), 5 * constant, atol=1e-5)
    i = torch.arange(16)
    checks = ((-1.0) ** (i[:, None] + i[None, :])).expand(1, 4, 16, 16)
    assert torch.allclose(frequency_decoupled(checks, zero, high=10, low=5), 10 * checks, atol=1e-5)


def test_frequency_decoupled_agrees_with_diffusers_where_kornia_is() -> None:
    pytest.importorskip("kornia")
    from diffusers.guiders import FrequencyDecoupledGuidance

    theirs = FrequencyDecoupledGuidance(guidance_scales=[10.0, 5.0])
    theirs.set_state(step=5, num_inference_steps=10, timestep=torch.tensor([1]))
    expected = theirs.forward(STRONG, WEAK)["pred"]
    assert torch.allclose(frequency_decoupled(STRONG, WEAK, high=10, low=5), expected, atol=1e-4)


def test_the_features_are_of_a_plain_call_after_one_step_from_t_plus_lead(batch: Batch) -> None:
    seen: list[Request] = []

    def call(request: Request) -> Response:
        seen.append(request)
        return batch.backbone.denoise(request, ("mid",) if request.features else ())

    technique = create_technique("guidance-cfg[scale=3,lead=50]")
    with torch.no_grad():
        got = technique.denoise(batch.request(50, 0), call)
    assert [int(r.t[0]) for r in seen] == [100, 100, 50] and [r.features for r in seen] == [
        False,
        False,
        True,
    ]
    assert seen[2].conditioning is batch.neutral and set(got.features) == {"mid"}
    strong, weak = plain(batch, captions(batch)), plain(batch, [""] * len(batch))
    schedule, high = batch.backbone.schedule, batch.request(100, 0)
    x = schedule.ddim_step(weak + 3 * (strong - weak), high.x_t, high.t, high.t - 50)
    assert torch.allclose(seen[2].x_t, x, atol=1e-5)


def test_the_lead_ends_at_the_schedules_end(batch: Batch) -> None:
    with torch.no_grad():
        request = batch.request(999, 0)
        got = create_technique("guidance-pag").denoise(request, batch.backbone.denoise)
        expected = batch.backbone.denoise(request)
    assert torch.allclose(got.prediction, expected.prediction, atol=1e-4)  # a step from t to t goes nowhere


def test_several_steps_cost_what_they_say(batch: Batch) -> None:
    assert create_technique("guidance-cfg", steps=3).cost.per_pass == 7
    assert create_technique("prompt+guidance-cfg[steps=3]+noise-ensemble[members=2]").cost.per_pass == 14


def test_guiders_say_nothing_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("cfg", "apg"):
        new_guider(GUIDERS[name], 2.0)
    assert "experimental" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "name", ["guidance[guider='cgf']", "guidance-cfg[lead=0]", "guidance-cfg[prompt='mine']"]
)
def test_impossible_settings_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be set up"):
        create_technique(name)
