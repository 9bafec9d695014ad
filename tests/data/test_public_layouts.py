"""Each public layout, written as it is published: what is read, and what is said where a file is missing or wrong."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from public_layouts import ade, cifar, cityscapes, folders, horse, image, mask, spair

from gate.data.pairs import PairSet
from gate.data.public import load_public
from gate.errors import ConfigurationError, UsageError
from gate.sample import SampleSet


def both(root: Path, needs: str, **limits: int) -> tuple[SampleSet, SampleSet]:
    found = load_public(root, needs, size=32, **limits)  # type: ignore[arg-type]
    assert isinstance(found.train, SampleSet) and isinstance(found.test, SampleSet)
    return found.train, found.test


def test_spair_keeps_every_point_and_measures_in_original_pixels(tmp_path: Path) -> None:
    found = load_public(spair(tmp_path), "pairs", size=32)
    assert isinstance(found.test, PairSet) and len(found.test.pairs) == 2 and len(found.test.samples) == 4
    pair = found.test.pairs[0]
    np.testing.assert_allclose(
        pair.source_points, [[15.5, 15.5], [-0.1, 1 / 30]], atol=1e-5
    )  # centre stays centre
    assert (pair.image, pair.box, pair.scale, pair.group) == (64, 48, (2.0, 1.5), "cat")
    np.testing.assert_allclose((pair.target_points[1] + 0.5) * pair.scale - 0.5, [63, 47], atol=1e-4)
    assert found.test.samples[pair.target].source == "cat/2008_0001.jpg"
    assert load_public(tmp_path, "pairs", size=32, test=1).test.pairs[0].box == 48  # type: ignore[union-attr]


def test_ade20k_shifts_classes_and_leaves_0_unlabelled(tmp_path: Path) -> None:
    train, test = both(ade(tmp_path), "masks", train=2)
    assert len(train) == 2 and len(test) == 3 and test.mask_classes[149] == "thing 150, kin"
    assert {tuple(np.unique(s.mask)) for s in test} == {(-1, 149), (-1, 148), (-1, 147)}  # type: ignore[arg-type]
    assert test[0].image.shape == (32, 32, 3)


def test_cityscapes_evaluates_19_of_its_classes(tmp_path: Path) -> None:
    train, _ = both(cityscapes(tmp_path), "masks")
    assert len(train) == 2 and len(train.mask_classes) == 19 and train.mask_classes[18] == "bicycle"
    assert np.unique(train[0].mask).tolist() == [-1, 0, 18]  # type: ignore[arg-type]


def test_horse_21_takes_its_number_of_classes_from_its_name(tmp_path: Path) -> None:
    train, test = both(horse(tmp_path), "masks")
    assert len(train) == len(test) == 2 and len(train.mask_classes) == 21
    assert np.unique(train[0].mask).tolist() == [-1, 0, 20]  # type: ignore[arg-type]


def test_cifar_10_is_read_plane_by_plane(tmp_path: Path) -> None:
    train, test = both(cifar(tmp_path), "labels")
    assert len(train) == 20 and len(test) == 4 and test.classes[9] == "class 9"
    assert [s.label for s in test] == [0, 9, 3, 3]
    assert (test[0].image == (200, 100, 50)).all()


def test_an_image_folder_has_the_classes_that_are_trained(tmp_path: Path) -> None:
    train, test = both(folders(tmp_path), "labels")
    assert train.classes == test.classes == ("cat", "dog") and sorted(s.label or 0 for s in test) == [0, 1]
    image(tmp_path / "val" / "emu" / "0.jpg", 20, 20)
    with pytest.raises(ConfigurationError, match="'emu', which train has not"):
        both(tmp_path, "labels")


class Malice:
    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        import os

        return os.system, ("touch pwned",)


def test_a_pickle_that_is_no_batch_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(pickle.dumps({b"data": Malice()}))
    with pytest.raises(ConfigurationError, match=r"data_batch_2.*system, which no array needs"):
        both(tmp_path, "labels")
    assert not (tmp_path / "pwned").exists()


class Codec:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        import _codecs

        return _codecs.encode, ("x", "rot13")


def test_a_pickled_batch_looks_up_no_other_codec(tmp_path: Path) -> None:
    cifar(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({b"data": Codec()}))
    with pytest.raises(ConfigurationError, match=r"test_batch.*codec 'rot13', which no array needs"):
        both(tmp_path, "labels")


def gone(path: str) -> Callable[[Path], None]:
    return lambda root: next(root.glob(path)).unlink()


def text(path: str, content: bytes) -> Callable[[Path], None]:
    return lambda root: next(root.glob(path)).write_bytes(content) and None  # type: ignore[func-returns-value]


def array(path: str, values: np.ndarray) -> Callable[[Path], None]:
    return lambda root: np.save(next(root.glob(path)), values)


def wide(path: str, values: np.ndarray) -> Callable[[Path], None]:
    return lambda root: mask(next(root.glob(path)), values)


def batch(name: str, **values: object) -> Callable[[Path], None]:
    said = {key.encode(): value for key, value in values.items()}
    return lambda root: (root / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(said)) and None  # type: ignore[func-returns-value]


def said(**values: object) -> Callable[[Path], None]:
    """The first training pair's annotation, with other values."""

    def spoil(root: Path) -> None:
        file = min(root.glob("PairAnnotation/trn/*.json"))
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return spoil


PIXELS = np.zeros((2, 3072), np.uint8)
WRONG = [
    (spair, "pairs", gone("JPEGImages/cat/2008_0011.jpg"), r"no file .*2008_0011.jpg.*PairAnnotation"),
    (spair, "pairs", text("PairAnnotation/trn/000001*", b"{}"), r"000001-.*json' lacks 'src_imname'"),
    (spair, "pairs", text("PairAnnotation/trn/000000*", b"["), r"000000-.*is no JSON object"),
    (spair, "pairs", text("PairAnnotation/trn/000000*", b"3"), r"000000-.*is no JSON object"),
    (spair, "pairs", said(trg_bndbox="abcd"), r"000000-.*trg_bndbox is wrong: input should be a valid tuple"),
    (spair, "pairs", said(trg_bndbox=[5, 5, 5, 5]), "trg_bndbox must be four numbers: left, top, right"),
    (spair, "pairs", said(src_imsize=[40]), "src_imsize is wrong: tuple should have at least 2 items"),
    (spair, "pairs", said(trg_imsize=[64, 32, 3]), r"2008_0001.jpg' is 64 x 48, and its .* says 64 x 32"),
    (spair, "pairs", said(src_kps=[["a", 1], [2, 3]]), r"src_kps.0.0 is wrong: input should be a valid num"),
    (spair, "pairs", said(src_kps=[[1, 2], [3]]), r"src_kps.1.1 is wrong: field required"),
    (spair, "pairs", said(src_kps=[[float("nan"), 1], [2, 3]]), "src_kps.0.0 is wrong: .*finite"),
    (spair, "pairs", said(src_kps=[[1, 2]]), "must be equally many"),
    (spair, "pairs", said(category=None), "category is wrong: input should be a valid string"),
    (ade, "masks", gone("annotations/validation/*2.png"), r"no file .*ADE_val_00000002.png.*ADE20K's layout"),
    (
        ade,
        "masks",
        wide("annotations/training/*1.png", np.zeros((8, 8))),
        r"1.png' is 8 x 8 and its image .* 24 x 16",
    ),
    (ade, "masks", text("objectInfo150.txt", b"head\na\tb\n"), "names 1 classes .*expected 150"),
    (
        ade,
        "masks",
        text("images/training/*1.jpg", b"no"),
        r"The image .*ADE_train_00000001.jpg' is not an image",
    ),
    (ade, "masks", wide("annotations/training/*1.png", np.full((16, 24), 151)), "holds 151; .* 1 to 150"),
    (cityscapes, "masks", gone("gtFine/val/bonn/*"), r"no file .*bonn_000000_000019_gtFine_labelIds.png"),
    (cityscapes, "masks", wide("gtFine/val/bonn/*", np.full((16, 32), 40)), "holds 40; labelIds"),
    (horse, "masks", gone("horse_21/real/test/1.npy"), r"no file .*1.npy.*Horse-21"),
    (
        horse,
        "masks",
        array("horse_21/real/test/1.npy", np.zeros((20, 20, 3))),
        r"1.npy' is \(20, 20, 3\) float64",
    ),
    (
        horse,
        "masks",
        array("horse_21/real/train/0.npy", np.full((20, 20), 21)),
        "holds class 21; horse_21 has 21",
    ),
    (horse, "masks", array("horse_21/real/train/0.npy", np.array([[{}]], object)), "without pickle"),
    (horse, "masks", array("horse_21/real/train/0.npy", np.zeros((0, 0))), r"0.npy' is \(0, 0\) float64"),
    (horse, "masks", array("horse_21/real/train/0.npy", np.zeros((20, 20), complex)), "complex128; expected"),
    (horse, "masks", text("horse_21/real/train/0.png", b""), "0.png' cannot be read: the file is empty"),
    (cifar, "labels", gone("*/test_batch"), "no file .*test_batch.*CIFAR-10's python layout"),
    (
        cifar,
        "labels",
        batch("test_batch", data=np.zeros((2, 9), np.uint8), labels=[0, 1]),
        r"an array \(2, 9\) uint8 as data",
    ),
    (cifar, "labels", batch("batches.meta", nothing=1), "no label_names"),
    (cifar, "labels", batch("batches.meta", label_names=5), "no label_names"),
    (cifar, "labels", batch("test_batch", data=PIXELS, labels=None), "and a NoneType as labels; expected"),
    (cifar, "labels", batch("test_batch", data=PIXELS, labels=["a", "b"]), "a list of 2 as labels; expected"),
    (cifar, "labels", batch("test_batch", data=PIXELS, labels=[1, -1]), "and n whole numbers below 10"),
    (cifar, "labels", batch("test_batch", data=[[1, 2], [3]], labels=[1, 1]), "a list of 2 as data"),
    (cifar, "labels", text("*/data_batch_1", b"\x80"), "data_batch_1' is no batch"),
]


@pytest.mark.parametrize("write, needs, spoil, said", WRONG)
def test_what_is_missing_or_malformed_is_named(
    tmp_path: Path, write: Callable[[Path], Path], needs: str, spoil: Callable[[Path], None], said: str
) -> None:
    root = write(tmp_path)
    load_public(root, needs, size=32)  # type: ignore[arg-type]  # whole before it is spoilt
    spoil(tmp_path)
    with pytest.raises(ConfigurationError, match=said):
        load_public(root, needs, size=32)  # type: ignore[arg-type]


def test_an_empty_half_of_an_image_folder_is_the_copys_fault(tmp_path: Path) -> None:
    folders(tmp_path)
    for file in (tmp_path / "val").glob("*/*"):
        file.unlink()
    with pytest.raises(ConfigurationError, match="val' is empty.*Expected the ImageFolder layout"):
        both(tmp_path, "labels")


def test_a_folder_of_no_known_layout_says_which_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="ADE20K's layout.*Cityscapes' layout.*Horse-21"):
        load_public(tmp_path, "masks", size=32)
    with pytest.raises(UsageError, match="There is no folder"):
        load_public(tmp_path / "x", "masks", size=32)
