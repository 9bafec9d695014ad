from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gate.data.pairs import load_pairs
from gate.tasks import Pair, create_task
from gate.tasks.correspondence import cell_of, descriptors, hits, match, symmetric_loss
from gate.tasks.truth import truth_of


def pair(points: list[list[float]], **more: float) -> Pair:
    where = np.array(points, np.float32)
    return Pair(0, 1, where, where, **{"image": 100.0, "box": 40.0, **more})


def test_hits_are_distances_in_original_pixels() -> None:
    given = pair([[0, 0], [10, 10], [20, 20]])
    found = given.target_points + np.array([[0, 4], [4.1, 0], [7.1, 7.1]])  # 4, 4.1 and just above 10 away
    assert hits(given, found) == (3, 2, 1)
    squeezed = Pair(**{**vars(given), "scale": (2.0, 1.0)})  # the file is twice as wide
    assert hits(squeezed, given.target_points + np.array([[5, 0], [5.1, 0], [0, 10]])) == (3, 2, 0)


def test_a_point_at_the_centre_of_a_cell_reads_that_cell_and_falls_into_it() -> None:
    x = torch.arange(16.0).reshape(1, 4, 4)
    centres = torch.tensor([[3.5, 3.5], [11.5, 3.5], [27.5, 27.5]])
    torch.testing.assert_close(descriptors(x, centres, 32)[:, 0], torch.tensor([0.0, 1.0, 15.0]))
    assert cell_of(centres, 32, (4, 4)).tolist() == [0, 1, 15]
    assert cell_of(torch.tensor([[-1.0, 40.0]]), 32, (4, 4)).tolist() == [12]


def test_the_same_image_matches_itself() -> None:
    x = F.normalize(torch.randn(8, 16, 16, generator=torch.Generator().manual_seed(0)), dim=0)
    points = torch.tensor([[1.5, 1.5], [33.5, 61.5]])  # centres of cells of 4 pixels
    torch.testing.assert_close(match(x, x, points, 64), points)


def test_the_loss_is_clips_by_hand() -> None:
    a = F.normalize(torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0)), dim=0)
    b = F.normalize(torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(1)), dim=0)
    given = Pair(
        0, 1, np.float32([[3.5, 3.5]]), np.float32([[11.5, 11.5]]), 16.0, 16.0
    )  # cells 0 and 3 of 8 pixels
    scale = torch.tensor(5.0)
    flat_a, flat_b = a.reshape(3, 4).double(), b.reshape(3, 4).double()
    forward = (5 * flat_a[:, 0] @ flat_b).log_softmax(0)[3]
    backward = (5 * flat_b[:, 3] @ flat_a).log_softmax(0)[0]
    wanted = -(forward + backward) / 2
    assert float(symmetric_loss(a, b, given, np.array([0]), 16, scale)) == pytest.approx(
        float(wanted), rel=1e-5
    )
    alike = symmetric_loss(torch.ones(3, 2, 2), torch.ones(3, 2, 2), given, np.array([0]), 16, scale)
    assert float(alike) == pytest.approx(math.log(4), rel=1e-5)  # nothing told apart: one of four by chance


def test_points_of_scene_pairs_are_the_same_points() -> None:
    found = load_pairs(n=3, size=64, seed=1)
    again = load_pairs(n=2, size=64, seed=1)
    assert [s.id for s in again.samples] == [s.id for s in found.samples][:4]
    for one, two in zip(found.pairs, again.pairs, strict=False):
        np.testing.assert_array_equal(one.source_points, two.source_points)
    assert {(p.source, p.target) for p in found.pairs} == {(0, 1), (2, 3), (4, 5)}
    for given in found.pairs:
        assert 0 < len(given.source_points) <= 20 and given.image == 64 and 10 < given.box <= 64
        for points, row in ((given.source_points, given.source), (given.target_points, given.target)):
            mask = found.samples[row].mask
            assert mask is not None
            x, y = np.rint(points).astype(int).T
            assert (mask[y, x] > 0).all()  # they lie on the object


def test_an_image_that_holds_positions_is_matched_to_a_pixel() -> None:
    pairs = load_pairs(n=4, size=64, seed=3)
    truth = truth_of(pairs)
    task = create_task("correspondence", side=64)
    features = torch.zeros(8, 2 * 64 + 2, 16, 16)
    for given in truth.pairs:  # each point a channel of its own, in both images where it is
        for row, points in ((given.source, given.source_points), (given.target, given.target_points)):
            cells = cell_of(torch.from_numpy(points), 64, (16, 16))
            for i, cell in enumerate(cells.tolist()):
                features[row, i, cell // 16, cell % 16] += 1
    counts = task.judge(task.train({"a": features}, truth), {"a": features}, truth)
    assert task.figure(counts) > 0.95
