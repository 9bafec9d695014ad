from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gate.errors import ConfigurationError
from gate.tasks import create_task
from gate.tasks.loop import epoch_order, pace
from tests.tasks.made import made

TRAINED = ("segmentation-linear", "correspondence-conv", "scarce-segmentation[labelled=8,members=2]")


def test_each_epoch_has_an_order_of_its_own_that_the_given_order_does_not_change() -> None:
    ids = [f"image-{i}" for i in range(20)]
    first, second = epoch_order(ids, 0, 0), epoch_order(ids, 0, 1)
    assert sorted(first) == list(range(20)) and first != second and first != epoch_order(ids, 1, 0)
    turned = ids[::-1]
    assert [turned[i] for i in epoch_order(turned, 0, 0)] == [ids[i] for i in first]


def test_the_rate_rises_then_falls_to_0() -> None:
    shares = np.linspace(0, 1, 101)
    paces = [pace(float(s)) for s in shares]
    assert max(paces) == pytest.approx(1) and paces[0] == 0 and paces[-1] == pytest.approx(0, abs=1e-9)
    assert np.argmax(paces) == 5


@pytest.mark.parametrize("name", TRAINED)
def test_the_order_of_the_samples_changes_nothing(name: str) -> None:
    features, truth = made(16)
    task = create_task(name, epochs=2, batch=4)
    turned = np.arange(16).reshape(-1, 2)[::-1].ravel()
    swapped = truth.rows(turned)
    if task.needs == "pairs":
        vars(swapped)["pairs"] = (
            truth.pairs
        )  # the i-th pair of rows (2 i, 2 i + 1) is another one now, same points
    one = task.train(features, truth, seed=1)
    two = task.train({k: x[turned] for k, x in features.items()}, swapped, seed=1)
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)  # moments are summed in another order


@pytest.mark.parametrize("name", ("segmentation-linear", "classification-mlp[hidden=8]"))
def test_an_interrupted_training_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    features, truth = made(16)
    task, file = create_task(name, epochs=6, batch=4), tmp_path / "c"
    whole = task.train(features, truth, seed=2)

    def stop(done: int, steps: int) -> None:
        if done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        task.train(features, truth, seed=2, checkpoint=file, tick=stop)
    seen: list[int] = []
    resumed = task.train(features, truth, seed=2, checkpoint=file, tick=lambda done, _: seen.append(done))
    assert seen[0] > 2  # it did not begin anew
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ConfigurationError, match="another training"):
        task.train(features, truth, seed=3, checkpoint=file)
    file.write_bytes(b"nothing")
    with pytest.raises(ConfigurationError, match="no checkpoint"):
        task.train(features, truth, seed=2, checkpoint=file)


def test_a_rate_that_is_too_high_is_named() -> None:
    features, truth = made(8)
    with pytest.raises(ConfigurationError, match="lower its rate"):
        create_task("segmentation-linear", rate=1e36, epochs=4, batch=2).train(features, truth)
