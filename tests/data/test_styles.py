"""Sketched and degraded scenes: the same scenes, other pixels, true captions."""

from __future__ import annotations

import numpy as np

from gate.data import load_data
from gate.data.styles import degrade, sketch


def test_styles_change_pixels_and_nothing_else_of_the_truth() -> None:
    plain, sketched, degraded = (
        load_data(name, n=14, size=64)
        for name in ("scenes-held-out", "sketches-held-out", "degraded-held-out")
    )
    for a, b, c in zip(plain, sketched, degraded, strict=True):
        assert (a.label, a.source) == (b.label, b.source) == (c.label, c.source)
        assert a.mask is not None and b.mask is not None and (a.mask == b.mask).all()
        assert a.caption and b.caption == f"a sketch of {a.caption.removeprefix('a photo of ')}"
        assert c.caption == a.caption and len({a.id, b.id, c.id}) == 3


def test_a_sketch_is_nearly_grey_and_its_lines_are_where_edges_are() -> None:
    image = np.full((64, 64, 3), 230, np.uint8)
    image[16:48, 16:48] = (40, 90, 160)
    drawn = sketch(image).astype(int)
    assert np.ptp(drawn, axis=-1).max() <= 12  # graphite and paper are both nearly grey
    assert drawn[20, 17].mean() < drawn[2, 2].mean() - 60 and (sketch(image) == sketch(image)).all()


def test_degraded_scenes_are_blurred_noisy_and_a_function_of_their_number() -> None:
    image = np.full((64, 64, 3), 128, np.uint8)
    first, again, other = degrade(image, 1), degrade(image, 1), degrade(image, 2)
    assert (first == again).all() and (first != other).any()
    assert 10 < first.astype(float).std() < 14
    edge = np.zeros((64, 64, 3), np.uint8)
    edge[:, 32:] = 255
    assert 60 < degrade(edge, 1)[:, 31].mean() < 180


def test_half_of_the_mixed_scenes_are_bad_and_say_so() -> None:
    mixed = load_data("quality-trained", n=28, size=64)
    bad = [s for s in mixed if s.caption and s.caption.endswith(", low quality")]
    good = [s for s in mixed if s.caption and s.caption.endswith(", high quality")]
    assert len(bad) + len(good) == 28 and min(len(bad), len(good)) >= 5
