"""Scenes, named data and images in memory as samples."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from image_files import picture, sentence
from PIL import Image

from gate.data import DATA, as_samples, fit_image, load_data, load_scenes
from gate.errors import ConfigurationError, UsageError
from gate.sample import Sample, SampleSet, content_id
from gate.tiny.scenes import CLASSES

# Scenes and named data


@pytest.mark.parametrize("objects", ["held-out", "trained", "all"])
def test_scenes_know_everything_and_are_balanced(objects: str) -> None:
    samples = load_scenes(n=2 * len(CLASSES) + 3, size=32, objects=objects)  # type: ignore[arg-type]
    assert samples.name == "tiny-scenes" and samples.classes == CLASSES
    assert samples.mask_classes == ("background", *CLASSES)
    assert samples.has_captions and samples.has_labels and samples.has_masks
    counts = Counter(s.label for s in samples)
    assert set(counts.values()) == {2, 3} and len(counts) == len(CLASSES)
    for sample in samples:
        assert sample.image.shape == (32, 32, 3) and sample.mask is not None and sample.label is not None
        assert sample.mask.min() >= 0 and sample.label + 1 in sample.mask
    assert len({s.id for s in samples}) == len(samples)


def test_scenes_are_a_function_of_the_seed_and_fewer_begin_more() -> None:
    samples = load_scenes(n=20, size=32, seed=5)
    assert samples.fingerprint() == load_scenes(n=20, size=32, seed=5).fingerprint()
    assert samples[:9].fingerprint() == load_scenes(n=9, size=32, seed=5).fingerprint()
    assert samples.fingerprint() != load_scenes(n=20, size=32, seed=6).fingerprint()


def test_scenes_never_come_from_the_series_that_training_renders() -> None:
    assert all(
        int(s.source.split("-")[-1]) >= 10_000_000 for s in load_scenes(n=5, size=16, objects="trained")
    )


def test_scenes_refuse_what_they_cannot_do() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        load_scenes(n=0, size=16)
    with pytest.raises(UsageError, match="held-out"):
        load_scenes(n=1, size=16, objects="unseen")  # type: ignore[arg-type]


def test_named_data() -> None:
    looks = {"sketches-held-out", "sketches-trained", "degraded-held-out", "quality-trained"}
    domains = {"cluttered-held-out", "few-classes", "objects-held-out", "unnamed-held-out"}
    assert set(DATA) == {"scenes-held-out", "scenes-trained", "scenes-all", *looks, *domains}
    for name, entry in DATA.items():
        assert entry.name == name and entry.summary and "\n" not in entry.summary
        if name in looks | domains:
            continue
        assert str(len(CLASSES)) in entry.summary
        direct = load_scenes(n=4, size=16, seed=2, objects=name.removeprefix("scenes-"))  # type: ignore[arg-type]
        assert load_data(name, n=4, size=16, seed=2).fingerprint() == direct.fingerprint()
    with pytest.raises(UsageError, match=r"Did you mean 'scenes-held-out'.*gate list data"):
        load_data("scenes-heldout", n=4, size=16)


# Images in memory


def test_samples_of_the_right_size_come_back_as_they_are() -> None:
    scenes = load_scenes(n=3, size=16)
    assert as_samples(scenes, 16) is scenes
    again = as_samples(list(scenes), 16)
    assert all(a is b for a, b in zip(again, scenes))
    assert len(again.classes) == max(s.label or 0 for s in scenes) + 1 and again.has_masks


def test_samples_of_another_size_are_fitted_with_what_is_known_about_them() -> None:
    image = np.asarray(picture(0, 40, 20))
    mask = np.zeros((20, 40), np.int16)
    mask[:, 20:] = -1
    points = np.array(
        [[9.5, -0.5], [29.5, 19.5], [20, 10]]
    )  # the corners of the centre square; a pixel's centre
    original = Sample(image, "a caption", 2, mask, points, "here")
    given = SampleSet(
        (original,), name="mine", classes=("a", "b", "c"), mask_classes=("0",), skipped=(("x", "y"),)
    )
    fitted = as_samples(given, 10)
    assert (fitted.name, fitted.classes, fitted.skipped) == (given.name, given.classes, given.skipped)
    (sample,) = fitted
    np.testing.assert_array_equal(sample.image, fit_image(Image.fromarray(image), 10))
    np.testing.assert_array_equal(sample.mask, np.repeat([[0] * 5 + [-1] * 5], 10, axis=0))
    np.testing.assert_allclose(sample.keypoints, [[-0.5, -0.5], [9.5, 9.5], [4.75, 4.75]])
    assert (sample.caption, sample.label, sample.source) == ("a caption", 2, "here")
    assert sample.id == content_id(sample.image) != original.id and original.image.shape == (20, 40, 3)


def test_pictures_arrays_and_samples_mix_and_one_may_come_alone() -> None:
    image = picture(3, 16, 16)
    array = np.asarray(image)
    samples = as_samples([image, array, Sample(array), image.convert("L")], 16)
    assert len({s.id for s in samples[:3]}) == 1 and len(samples) == 4
    assert samples.classes == () and samples.mask_classes == ()
    for alone in (image, array, Sample(array), array[None], iter([array])):
        assert [s.id for s in as_samples(alone, 16)] == [samples[0].id]


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        "folder",
        ["photo.png"],
        7,
        [np.zeros((4, 4), np.uint8)],
        [np.zeros((4, 4, 3), np.float32)],
        [np.zeros((4, 4, 4), np.uint8)],
        np.zeros((3, 4, 4), np.uint8),
        [None],
    ],
)
def test_what_is_no_image_is_refused(wrong: object) -> None:
    with pytest.raises(UsageError) as error:
        as_samples(wrong, 16)  # type: ignore[arg-type]
    sentence(error)


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no content"):
        as_samples([Image.new("RGB", (0, 4))], 16)


def test_data_needs_no_torch() -> None:
    code = "import sys, gate.data; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
