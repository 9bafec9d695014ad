"""The named sets in which the order of techniques differs."""

from __future__ import annotations

import numpy as np
import pytest

from gate.data import find_data, load_data
from gate.data.scenes import load_scenes
from gate.data.styles import clutter
from gate.errors import UsageError
from gate.tiny.pairs import pairs_within
from gate.tiny.scenes import CLASSES, sprite_to_scene, sprites


@pytest.mark.parametrize(
    "name", ["cluttered-held-out", "few-classes", "objects-held-out", "unnamed-held-out"]
)
def test_the_scenes_behind_a_set_are_its_own(name: str) -> None:
    samples, scenes = load_data(name, n=6, size=32), find_data(name).draw(n=6, size=32)
    assert [s.source for s in samples] == [scene.sample_id for scene in scenes]
    for sample, scene in zip(samples, scenes, strict=True):
        assert sample.mask is not None and np.array_equal(sample.mask > 0, scene.owner > 0)
        assert sample.label is not None and (sample.mask == sample.label + 1).any()


def test_clutter_leaves_objects_alone_and_is_a_function_of_the_number() -> None:
    scene = find_data("scenes-held-out").draw(n=1, size=64)[0]
    behind = scene.owner == 0
    made = clutter(scene.image, behind, 5)
    assert np.array_equal(made[~behind], scene.image[~behind])
    assert (made != scene.image).any(axis=2)[behind].mean() > 0.3
    assert np.array_equal(made, clutter(scene.image, behind, 5))
    assert not np.array_equal(made, clutter(scene.image, behind, 6))


def test_few_classes_are_four_and_objects_are_twenty_eight() -> None:
    few = load_data("few-classes", n=8, size=32)
    assert few.classes == ("mammal", "vehicle", "fruit", "building")
    assert sorted(np.bincount([s.label for s in few])) == [2, 2, 2, 2]
    objects = load_data("objects-held-out", n=28, size=32)
    assert objects.classes == tuple(s.name for s in sprites("held-out"))
    assert len({s.label for s in objects}) == 28
    with pytest.raises(UsageError, match="no class 'cheese'"):
        load_scenes(n=1, size=32, groups=("cheese",))


def test_captions_that_name_nothing_name_nothing() -> None:
    samples, named = (load_data(name, n=24, size=32) for name in ("unnamed-held-out", "scenes-held-out"))
    assert [s.id for s in samples] == [s.id for s in named]  # the same images
    words = {*CLASSES, *(s.name for s in sprites("all"))}
    assert not any(word in s.caption for s in samples for word in words if s.caption)
    assert {"of two", "of three"} <= {" ".join(s.caption.split()[2:4]) for s in samples if s.caption}


def test_pairs_within_scenes_show_one_point_of_one_object() -> None:
    scenes = find_data("scenes-held-out").draw(n=80, size=64)
    pairs = pairs_within(scenes, 40)
    assert len(pairs) == 40 == len({(p.first, p.second) for p in pairs})
    assert [p.points_a.tolist() for p in pairs] == [p.points_a.tolist() for p in pairs_within(scenes, 40)]
    assert max(np.bincount([p.sprite for p in pairs])) <= 3  # every object as often as can be
    for pair in pairs:
        places = []
        for number, points in ((pair.first, pair.points_a), (pair.second, pair.points_b)):
            scene = scenes[number]
            k = next(i for i, p in enumerate(scene.objects) if p.sprite.cell == pair.sprite)
            nearest = np.rint(points).astype(int)
            assert (scene.owner[nearest[:, 1], nearest[:, 0]] == k + 1).all()
            affine = sprite_to_scene(scene.objects[k], 64)
            places.append((points - affine[:, 2]) @ np.linalg.inv(affine[:, :2]).T)
        assert places[0] == pytest.approx(places[1], abs=1e-4)
        x0, y0, x1, y1 = pair.box  # pixel edges; points are of pixels, to half a pixel
        x, y = pair.points_b.T + 0.5
        assert x0 - 0.5 <= x.min() and x.max() <= x1 + 0.5 and y0 - 0.5 <= y.min() and y.max() <= y1 + 0.5
