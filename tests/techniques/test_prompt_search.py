"""Prompt search: the argmin of the noise error, found with fewer calls."""

from __future__ import annotations

import pytest
import torch

from gate.condition_search import NOISE, copies, search_calls
from gate.errors import UnsuitableError, UsageError
from gate.registry import create_technique
from gate.request import Batch
from gate.sample import SampleSet
from gate.techniques.prompt_search import PromptSearch

CANDIDATES = ("a bird", "a tool", "a fruit on a green background", "a building")


def errors(batch: Batch, n: int) -> torch.Tensor:
    """(b, candidates) mean squared noise error over n evenly spaced timesteps, one loop, no pruning."""
    total = torch.zeros(len(batch), len(CANDIDATES), dtype=torch.float64)
    for k in range(n):
        t = 1000 * (2 * k + 1) // (2 * n)
        for j, text in enumerate(CANDIDATES):
            request = batch.request(t, NOISE + k, batch.backbone.encode_prompts([text] * len(batch)))
            with torch.no_grad():
                got = batch.backbone.denoise(request).prediction
            total[:, j] += (got.double() - request.eps.double()).square().mean(dim=(1, 2, 3))
    return total / n


def test_without_pruning_it_is_the_exhaustive_argmin(batch: Batch) -> None:
    best = errors(batch, 4).argmin(1).tolist()
    for stages in (((4, 1),), ((2, 4), (4, 1))):
        found = PromptSearch(candidates=CANDIDATES, stages=stages).condition(batch.neutral, batch)
        assert found.prompts == tuple(CANDIDATES[i] for i in best)


def test_pruning_drops_the_worst_and_keeps_the_order_of_the_rest(batch: Batch) -> None:
    technique = PromptSearch(candidates=CANDIDATES, stages=((1, 2), (4, 1)))
    found = technique.condition(batch.neutral, batch).prompts
    texts = [batch.backbone.encode_prompts([c] * len(batch)) for c in CANDIDATES]
    early, late = torch.stack([technique._error(2, text, batch) for text in texts], dim=1), errors(batch, 4)
    for row, text in enumerate(found):
        kept = sorted(range(4), key=lambda j: float(early[row, j]))[:2]
        assert text == CANDIDATES[min(kept, key=lambda j: float(late[row, j]))]


def test_equal_prompts_differ_by_exactly_nothing_and_the_first_wins(batch: Batch) -> None:
    technique = PromptSearch(candidates=("a bird", "a bird"))
    a, b = (
        technique._error(3, batch.backbone.encode_prompts(["a bird"] * len(batch)), batch) for _ in range(2)
    )
    assert torch.equal(a, b)
    assert technique._search(("a bird", "a bird"), batch.neutral, batch) == [0] * len(batch)


@pytest.mark.parametrize("loss", ["l1", "huber"])
def test_other_losses(loss: str, batch: Batch) -> None:
    technique = create_technique("prompt-search", candidates=CANDIDATES, stages=((1, 1),), loss=loss)
    assert len(technique.condition(batch.neutral, batch).prompts) == len(batch)


def test_copies_are_nested_evenly_spaced_and_complete() -> None:
    stages = ((2, 5), (4, 3), (8, 1))
    assert [copies(n, stages) for n in (2, 4, 8)] == [[2, 6], [0, 2, 4, 6], list(range(8))]
    for few, more in (((1, 2), (8, 1)), ((3, 2), (6, 1)), ((2, 4), (8, 1))):
        small, large = copies(few[0], (few, more)), copies(more[0], (few, more))
        assert len(small) == few[0] and set(small) <= set(large) and len(large) == more[0]


def test_calls_by_hand() -> None:
    assert search_calls(14, ((2, 4), (8, 1))) == 14 * 2 + 4 * 6
    assert search_calls(3, ((2, 4), (8, 1))) == 3 * 8
    assert search_calls(5, ((2, 1), (8, 1))) == 5 * 2
    assert search_calls(1, ((2, 4), (8, 1))) == search_calls(0, ((2, 4), (8, 1))) == 0


def test_class_names_are_the_default_candidates_and_the_cost_is_known_after_fit(
    batch: Batch, samples: SampleSet
) -> None:
    technique = PromptSearch()
    technique.fit(batch.backbone, samples)
    n = len(samples.classes)
    assert technique.cost.per_image == 2 * n + 8 <= 40
    again = PromptSearch()
    again.load_state(technique.state())
    assert again._fitted == technique._fitted and technique._fitted[0] == f"a photo of a {samples.classes[0]}"


def test_without_class_names_or_candidates_it_is_refused(batch: Batch, samples: SampleSet) -> None:
    bare = SampleSet(samples.samples)
    with pytest.raises(UnsuitableError, match="candidates"):
        PromptSearch().check(batch.backbone, bare)
    PromptSearch(candidates=CANDIDATES).check(batch.backbone, bare)


@pytest.mark.parametrize("stages", [(), ((2, 4),), ((2, 4), (3, 1)), ((0, 1),), ((4, 2), (4, 1))])
def test_impossible_stages_are_refused(stages: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(UsageError, match=r"stage|copies"):
        create_technique("prompt-search", stages=stages)
