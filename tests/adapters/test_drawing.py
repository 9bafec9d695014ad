"""Control images: canny is OpenCV's pixel for pixel, and the hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest

from gate.adapters.drawing import CONTROLS, canny, soft_edges, tile
from gate.tiny.scenes import render

cv2 = pytest.importorskip("cv2")


@pytest.mark.parametrize("thresholds", [(100, 200), (20, 60), (50, 300)])
def test_canny_is_opencvs_on_scenes_and_on_noise(thresholds: tuple[int, int]) -> None:
    low, high = thresholds
    rng = np.random.default_rng(0)
    pictures = [render(3, i, size=s).image for i, s in enumerate((64, 128, 96))]
    pictures += [rng.integers(0, 256, (33, 47, 3), dtype=np.uint8)]
    for picture in pictures:
        expected = cv2.Canny(picture, low, high)
        assert np.array_equal(canny(picture, low=low, high=high)[..., 0], expected)
        grey = np.repeat(picture[..., :1], 3, axis=-1)
        assert np.array_equal(
            canny(grey, low=low, high=high)[..., 0], cv2.Canny(picture[..., 0].copy(), low, high)
        )


def test_a_step_is_one_line_and_smoothing_keeps_it() -> None:
    picture = np.zeros((20, 20, 3), np.uint8)
    picture[:, 10:] = 255
    for sigma in (0.0, 1.0):
        edges = canny(picture, sigma=sigma)[..., 0]
        assert (edges[:, 9:11].max(axis=1) == 255).all() and (edges > 0).sum() == 20


def test_weak_edges_stay_only_where_they_touch_strong_ones() -> None:
    picture = np.zeros((20, 20, 3), np.uint8)
    picture[:10, 10:] = 255  # strong above
    picture[10:, 10:] = 30  # weak below, continuing it
    alone = np.zeros((20, 20, 3), np.uint8)
    alone[10:, 10:] = 30
    assert canny(picture)[15, 9:11].max() == 255
    assert canny(alone).max() == 0


def test_every_control_keeps_shape_and_type_and_a_flat_image_has_no_edges() -> None:
    flat = np.full((16, 24, 3), 77, np.uint8)
    for make in CONTROLS.values():
        assert make(flat).shape == flat.shape and make(flat).dtype == np.uint8
    assert canny(flat).max() == soft_edges(flat).max() == 0
    assert np.array_equal(tile(flat), flat)
