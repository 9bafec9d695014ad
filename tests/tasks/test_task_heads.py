from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from gate.errors import ConfigurationError, NonFiniteError, UsageError
from gate.tasks import TASKS, create_task
from gate.tasks.segmentation import grid_truth
from tests.tasks.made import made

QUICK = {
    "correspondence": {},
    "correspondence-conv": {"epochs": 12, "batch": 4, "rate": 1e-2},
    "scarce-segmentation": {"labelled": 12, "members": 3, "hidden": (16, 8), "epochs": 60, "rate": 1e-2},
    "segmentation": {"width": 8, "epochs": 40},
    "segmentation-linear": {"epochs": 40},
    "classification": {"batch": 8},
    "classification-mlp": {"hidden": 16, "batch": 8, "rate": 1e-2},
}


@pytest.mark.parametrize("name", TASKS)
def test_a_head_finds_what_the_features_hold_and_nothing_in_noise(name: str) -> None:
    task = create_task(name, **QUICK[name])
    (features, truth), (others, judged) = made(36), made(24, seed=9)
    counts = task.judge(task.train(features, truth), others, judged)
    blind = {k: torch.randn_like(x) for k, x in features.items()}
    unseen = {k: torch.randn_like(x) for k, x in others.items()}
    nothing = task.judge(task.train(blind, truth), unseen, judged)
    assert len(counts) == (12 if task.needs == "pairs" else 24)
    assert task.figure(counts) > 0.7
    assert task.figure(nothing) < 0.55


@pytest.mark.parametrize("name", TASKS)
def test_a_head_is_a_function_of_its_seed(name: str) -> None:
    features, truth = made(16)
    task = create_task(name, **{**QUICK[name], "epochs": 2})
    one, two, other = (task.train(features, truth, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert name == "correspondence" or any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", TASKS)
def test_what_cannot_be_trained_on_is_refused_in_a_sentence(name: str) -> None:
    features, truth = made(16)
    task = create_task(name, **QUICK[name])
    bare = dataclasses.replace(truth, labels=None, masks=None, pairs=())
    with pytest.raises(ConfigurationError, match=f"needs {task.needs}"):
        task.train(features, bare)
    with pytest.raises(ConfigurationError, match="a row per image"):
        task.train({"fine": features["fine"][:3]}, truth)
    with pytest.raises(ConfigurationError, match="no features"):
        task.train({}, truth)
    with pytest.raises(NonFiniteError, match="fine"):
        task.train({"fine": features["fine"] / 0}, truth)


def test_a_class_without_a_name_is_refused() -> None:
    features, truth = made(8)
    with pytest.raises(ConfigurationError, match="hold class 3, and 2 classes"):
        create_task("segmentation").train(features, dataclasses.replace(truth, mask_classes=("a", "b")))


def test_unlabelled_pixels_teach_nothing_and_are_not_judged() -> None:
    features, truth = made(16)
    assert truth.masks is not None
    holes = truth.masks.copy()
    holes[:, :8] = -1
    task = create_task("segmentation-linear", epochs=2)
    part = dataclasses.replace(truth, masks=holes)
    counts = task.judge(task.train(features, part), features, part)
    assert (counts.sum(axis=(1, 2)) == 32 * 24).all()
    assert (grid_truth(part, (8, 8))[:, :2] == -1).all()
    with pytest.raises(ConfigurationError, match="nothing to learn"):
        task.train(features, dataclasses.replace(truth, masks=np.full_like(holes, -1)))


def test_a_split_is_a_draw_of_the_seed() -> None:
    _, truth = made(24)
    task = create_task("scarce-segmentation", labelled=5)
    first, second = task.taught(truth, 0), task.taught(truth, 1)
    assert len(first) == 5 and set(first) != set(second)
    with pytest.raises(ConfigurationError, match="labelled=24"):
        create_task("scarce-segmentation", labelled=25).taught(truth, 0)


def test_names_carry_settings_and_wrong_ones_are_refused() -> None:
    assert create_task("segmentation[width=8,rate=1]").settings["rate"] == 1.0
    assert create_task("scarce-segmentation[hidden=(4, 2)]").settings["hidden"] == (4, 2)
    with pytest.raises(UsageError, match="Did you mean 'segmentation'"):
        create_task("segmentaton")
    with pytest.raises(UsageError, match="widht"):
        create_task("segmentation[widht=8]")
    with pytest.raises(UsageError, match="int, not 'big'"):
        create_task("segmentation[width=big]")
    with pytest.raises(UsageError, match="1 or more"):
        create_task("segmentation", epochs=0)
