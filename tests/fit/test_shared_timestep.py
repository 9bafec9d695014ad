"""`--shared-below`: the denoiser learns under E-TSDM's shared timestep condition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gate.errors import UsageError
from gate.fit import make_fit_config
from gate.fit.report import fit_command, screen_command
from gate.fit.trainer import create_trainer

SMALL: dict[str, Any] = {"data": "scenes-held-out", "samples": 8, "rank": 1, "output": "x", "sheet": 0}


@pytest.mark.parametrize("name", ["lora", "controlnet", "t2i-adapter", "textual-inversion", "smooth-lora"])
def test_what_is_learned_is_told_the_interval_and_judged_at_its_own_level(
    name: str, tiny: Any, scenes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[int]] = []
    trainer = create_trainer(make_fit_config({**SMALL, "name": name, "shared_below": 100}), tiny, scenes[:2])
    try:
        real = trainer.predict

        def predict(x_t: Any, t: Any, texts: Any, rows: Any) -> Any:
            told.append(t.tolist())
            return real(x_t, t, texts, rows)

        monkeypatch.setattr(trainer, "predict", predict)
        request = tiny.batch(scenes[:2].samples).request(0, 0)
        t = torch.tensor([50, 300])
        x_t = tiny.schedule.add_noise(request.batch.x0, request.eps, t)
        with torch.no_grad():
            trainer.loss(x_t, request.eps, t, ["", ""], [0, 1])
            shared = trainer.predict(x_t, torch.tensor([40, 300]), ["", ""], [0, 1])
        assert told[0] == [40, 300]
        eps_hat = tiny.schedule.eps_from(shared, x_t, t)
        error = (eps_hat - request.eps).square().mean(dim=(1, 2, 3))
        torch.testing.assert_close(trainer._error(shared, x_t, request.eps, t), error)
    finally:
        trainer.release()


@pytest.mark.parametrize("name", ["cleandift", "ip-adapter"])
def test_the_others_are_told_so_too(
    name: str, tiny: Any, scenes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CleanDIFT's teacher, and the IP-Adapter, whose encoder makes the test dear but not the point."""
    monkeypatch.setattr("gate.fit.ip_adapter.ACQUAINT_STEPS", 1)
    trainer = create_trainer(make_fit_config({**SMALL, "name": name, "shared_below": 100}), tiny, scenes[:2])
    seen: list[Any] = []
    handle = tiny.denoiser.register_forward_pre_hook(lambda _, args: seen.append(args[1].tolist()))
    try:
        request = tiny.batch(scenes[:2].samples).request(50, 0)
        with torch.no_grad():
            trainer.loss(request.x_t, request.eps, request.t, ["", ""], [0, 1])
    finally:
        handle.remove()
        trainer.release()
    assert seen[0] == [40, 40]


def test_without_it_nothing_changes_and_the_commands_say_it(tmp_path: Path, tiny: Any, scenes: Any) -> None:
    config = make_fit_config({**SMALL, "name": "lora"})
    trainer = create_trainer(config, tiny, scenes[:2])
    t = torch.arange(0, 1000, 7)
    assert trainer.told(t) is t
    trainer.release()
    shared = make_fit_config({**SMALL, "name": "lora", "shared_below": 100})
    assert "--shared-below 100" in fit_command(shared)
    assert "shared-timestep[threshold=100,intervals=5]+lora[weights=x]" in screen_command(shared)
    assert "shared" not in screen_command(config)
    with pytest.raises(UsageError, match="divide"):
        make_fit_config({**SMALL, "name": "lora", "shared_below": 100, "shared_intervals": 3})
