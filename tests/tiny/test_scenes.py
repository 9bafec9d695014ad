"""The scenes tell the truth about themselves."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from gate.tiny.pairs import _correspond, render_pair
from gate.tiny.scenes import CLASSES, class_prompts, render, render_of, sprite_to_scene, sprites


def test_a_scene_is_a_function_of_seed_and_index() -> None:
    first, again, other = render(3, 5), render(3, 5), render(3, 6)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    assert first.caption == again.caption
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("size", [64, 128])
def test_shapes_and_ranges(size: int) -> None:
    scene = render(0, 1, size=size)
    assert scene.image.shape == (size, size, 3)
    assert scene.image.dtype == np.uint8
    assert scene.mask.shape == (size, size)
    assert scene.mask.max() <= len(CLASSES)


def test_the_split_is_balanced_and_disjoint() -> None:
    trained, held_out = sprites("trained"), sprites("held-out")
    assert {s.name for s in trained}.isdisjoint(s.name for s in held_out)
    assert len(held_out) / len(sprites("all")) == pytest.approx(0.2)
    for name in CLASSES:
        assert sum(s.group == name for s in trained) == 8
        assert sum(s.group == name for s in held_out) == 2


def test_held_out_objects_never_appear_in_training_scenes() -> None:
    for index in range(100):
        assert not any(p.sprite.held_out for p in render(1, index, objects="trained").objects)
        assert all(p.sprite.held_out for p in render(1, index, objects="held-out").objects)


@pytest.mark.parametrize("objects", ["trained", "held-out"])
def test_captions_name_every_object(objects: str) -> None:
    for index in range(60):
        scene = render(4, index, objects=objects)  # type: ignore[arg-type]
        for placement in scene.objects:
            assert placement.sprite.phrase in scene.caption


def test_mask_holds_the_classes_of_the_objects_and_the_label_is_the_largest() -> None:
    for index in range(60):
        scene = render(5, index)
        shown = set(np.unique(scene.mask).tolist()) - {0}
        assert shown <= {CLASSES.index(p.sprite.group) + 1 for p in scene.objects}
        assert scene.label + 1 in shown
        if len(scene.objects) == 1:
            assert shown == {scene.label + 1}
            assert 0.02 < (scene.mask > 0).mean() < 0.9


def test_mask_separates_object_from_background() -> None:
    """Outside the mask of one object only the background shows, so its pixels hardly depend on the object."""
    a, b = (render_of(s, 7, 0) for s in (sprites("all")[0], sprites("all")[0]))
    assert np.array_equal(a.image, b.image)
    scene = next(s for s in (render(8, i, count=1) for i in range(50)) if s.background.kind == "plain")
    corner_colour = np.array(scene.background.colours[0])
    outside = scene.image[scene.mask == 0].astype(float)
    assert np.median(np.abs(outside - corner_colour)) <= 1


def test_the_number_of_objects_can_be_asked_for() -> None:
    assert [len(render(0, 0, count=k).objects) for k in (1, 2, 3)] == [1, 2, 3]


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="held-out"):
        sprites("test")  # type: ignore[arg-type]


def test_affine_map_by_hand() -> None:
    """Upright, centred, full size: the object's square is the image; a quarter turn moves its right edge
    up."""
    pair = render_pair(0, 0)
    from dataclasses import replace

    centred = replace(pair.placement_a, x=0.5, y=0.5, scale=1.0, angle=0.0, flip=False)
    np.testing.assert_allclose(sprite_to_scene(centred, 64), [[32, 0, 31.5], [0, 32, 31.5]])
    turned = sprite_to_scene(replace(centred, angle=90.0), 64)
    np.testing.assert_allclose(turned @ [1, 0, 1], [31.5, -0.5], atol=1e-9)
    flipped = sprite_to_scene(replace(centred, flip=True), 64)
    np.testing.assert_allclose(flipped @ [1, 0, 1], [-0.5, 31.5], atol=1e-9)


def test_correspondences_lie_on_the_object_and_look_alike() -> None:
    for index in range(20):
        pair = render_pair(2, index, flip=True)
        assert len(pair.points_a) > 50
        ax, ay = pair.points_a.astype(int).T
        bx, by = np.rint(pair.points_b).astype(int).T
        assert (pair.mask_a[ay, ax] == pair.label + 1).all()
        assert (pair.mask_b[by, bx] == pair.label + 1).all()
        matched = np.abs(pair.image_a[ay, ax].astype(float) - pair.image_b[by, bx]).mean()
        shuffled = np.random.default_rng(0).permutation(len(bx))
        mismatched = np.abs(
            pair.image_a[ay, ax].astype(float) - pair.image_b[by[shuffled], bx[shuffled]]
        ).mean()
        assert matched < 25
        assert matched < mismatched


def test_identity_warp_gives_identical_points() -> None:
    pair = render_pair(2, 1)
    seen = pair.mask_a > 0
    points_a, points_b = _correspond(pair.placement_a, pair.placement_a, seen, seen)
    assert len(points_a) == seen.sum()
    np.testing.assert_allclose(points_a, points_b, atol=1e-4)


def test_class_prompts_follow_the_classes() -> None:
    assert len(class_prompts()) == len(CLASSES) == 14
    assert class_prompts()[CLASSES.index("bird")] == "a photo of a bird"
    assert class_prompts()[CLASSES.index("instrument")] == "a photo of an instrument"


def test_scenes_import_no_torch() -> None:
    code = "import sys, gate.tiny.scenes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
