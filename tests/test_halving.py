"""Where memory runs out the batch is halved, down to one; everything else is raised as it is."""

from __future__ import annotations

import pytest

from gate.errors import OutOfMemoryError
from gate.machine import halving


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 1 GB")])
def test_the_batch_is_halved_until_it_fits(error: Exception) -> None:
    tried, said = [], []

    def work(batch: int) -> str:
        tried.append(batch)
        if batch > 3:
            raise error
        return "done"

    assert halving(work, 13, "freeu", "use less", log=said.append) == "done" and tried == [13, 6, 3]
    assert said == [f"out of memory in freeu: going on with batches of {n}" for n in (6, 3)]


def test_a_batch_of_one_that_does_not_fit_is_a_sentence_and_other_errors_stay() -> None:
    def full(_: int) -> None:
        raise MemoryError

    def wrong(_: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(
        OutOfMemoryError, match="^freeu does not fit into memory even at batch size 1; use less.$"
    ):
        halving(full, 4, "freeu", "use less")
    with pytest.raises(RuntimeError, match="shapes differ"):
        halving(wrong, 4, "freeu", "use less")
