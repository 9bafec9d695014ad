"""What is measured once for all is the same as measured again."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gate.backbone import Backbone
from gate.calls import Memo, counted
from gate.registry import create_technique, select_plugins
from gate.sample import SampleSet
from gate.screening.bench import Bench, prepare
from gate.screening.config import make_config
from gate.screening.measure import measure
from gate.technique import Technique
from gate.techniques.ddim_inversion import DdimInversion


@pytest.fixture(scope="module")
def bench(tiny: Backbone, scenes: SampleSet) -> Bench:
    settings = {"timesteps": (50, 300), "seeds": 2, "image_samples": 2, "image_steps": 2}
    metrics = select_plugins("metric", ("standard",))
    return prepare(tiny, scenes[:8], make_config(settings), metrics, [])


class Seeded(DdimInversion):
    seedless = False


class Attaching(Technique):
    def attach(self, backbone: Backbone):  # type: ignore[no-untyped-def]
        return super().attach(backbone)


def test_one_seed_of_a_seedless_technique_stands_for_all(bench: Bench) -> None:
    ticks: list[int] = []
    once = measure(bench, DdimInversion(steps=2), ticks.append)
    both = measure(bench, Seeded(steps=2))
    assert sum(ticks) == 8 * 2 * 2
    assert once.calls == both.calls == 3
    for ours, theirs in ((once.shift, both.shift), (once.prediction, both.prediction)):
        for key in ours:
            assert np.array_equal(ours[key][:, 0], ours[key][:, 1])
            np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-4, atol=1e-6, err_msg=key)


def test_the_plain_clean_pass_is_made_once_unless_the_technique_may_change_the_backbone(bench: Bench) -> None:
    spent = []
    for technique in (Technique(), Attaching()):
        with counted(bench.backbone) as count:
            measured = measure(bench, technique)
        spent.append(count.rows)
        assert measured.calls == 1
    # a stranger's is also asked what its answers carry of images that it was not given: a clean pass, and one without
    assert spent == [8 * 4 + 2 * 2, 8 * 4 + 2 * 2 + 8 + 2 * 8]
    shared, own = (measure(bench, technique) for technique in (Technique(), Attaching()))
    for key in shared.shift:
        assert np.array_equal(shared.shift[key], own.shift[key]), key


def test_shared_calls_are_made_once_charged_to_everyone_and_change_nothing(bench: Bench) -> None:
    fresh = dataclasses.replace(bench, memo=Memo(bench.backbone))
    names = ("guidance-cfg", "guidance-apg", "guidance-pag")
    spent, together = [], []
    for name in names:
        before = len(fresh.memo.answers)
        together.append(measure(fresh, create_technique(name)))
        spent.append(len(fresh.memo.answers) - before)
    # on the way down: strong and weak, twice two times; at the latent that it leads to, each one's own, four more.
    # Pictures: both at two steps, of which the second is each one's own; pag has no weak call of the plain denoiser.
    assert spent == [8 + 4 + 4, 4 + 2, 4 + 1]
    for name, shared in zip(names, together, strict=True):
        alone = measure(dataclasses.replace(bench, memo=Memo(bench.backbone)), create_technique(name))
        assert shared.calls == alone.calls == 3
        for key in alone.shift:
            assert np.array_equal(shared.shift[key], alone.shift[key]), (name, key)
