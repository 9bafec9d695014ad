"""What lies beside images: captions, labels, masks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from image_files import by_source, fill, picture, sentence
from PIL import Image

from gate.data import load_images
from gate.data.images import UnreadableError, read_mask
from gate.errors import ConfigurationError, UsageError

# Captions


def test_captions_from_text_files(tmp_path: Path) -> None:
    paths = fill(tmp_path / "deep", 8)
    for path in paths:
        path.with_suffix(".txt").write_text(f"\ufeffa photo\n of  {path.stem} \n", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("not a caption")
    samples = load_images(tmp_path, size=8)
    assert samples.has_captions
    assert by_source(samples)["deep/img03.png"].caption == "a photo of img03"
    paths[0].with_suffix(".txt").write_text("  \n")
    paths[1].with_suffix(".txt").unlink()
    samples = load_images(tmp_path, size=8)
    assert by_source(samples)["deep/img00.png"].caption is None and not samples.has_captions
    assert len(samples) == 8
    paths[2].with_suffix(".txt").write_bytes(b"caf\xe9")
    with pytest.raises(ConfigurationError, match=r"img02\.txt"):
        load_images(tmp_path, size=8)


def test_captions_from_a_table_in_the_folder_or_given(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    paths = fill(folder, 8)
    paths[0].with_suffix(".txt").write_text("from the file")
    paths[1].with_suffix(".txt").write_text("from the file")
    (folder / "captions.csv").write_text('File, Caption\nimg00.png,"a cat, asleep"\n./img02.png,two\n')
    found = by_source(load_images(folder, size=8))
    assert found["img00.png"].caption == "a cat, asleep" and found["img01.png"].caption == "from the file"
    assert found["img02.png"].caption == "two" and found["img03.png"].caption is None
    given = tmp_path / "mine.csv"
    given.write_text("caption,file\n" + "".join(f"number {k},img{k:02d}.png\n" for k in range(8)))
    samples = load_images(folder, size=8, captions=given)
    assert samples.has_captions and by_source(samples)["img00.png"].caption == "number 0"


def test_two_images_that_could_own_one_caption_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, 8)
    picture(99).save(tmp_path / "img00.jpg")
    assert len(load_images(tmp_path, size=8)) == 9  # without a caption nothing is ambiguous
    (tmp_path / "img00.txt").write_text("whose?")
    with pytest.raises(ConfigurationError) as error:
        load_images(tmp_path, size=8)
    assert "img00.txt could belong to img00.jpg and img00.png" in sentence(error)


# Labels


def test_labels_from_subfolders_need_two_and_every_image_in_one(tmp_path: Path) -> None:
    fill(tmp_path / "dog" / "inside", 5)
    assert not load_images(tmp_path, size=8, minimum=5).has_labels
    fill(tmp_path / "cat", 5, start=10)
    samples = load_images(tmp_path, size=8)
    assert samples.classes == ("cat", "dog")
    assert all(samples.classes[s.label or 0] == s.source.split("/")[0] for s in samples)
    picture(77).save(tmp_path / "loose.png")
    samples = load_images(tmp_path, size=8)
    assert samples.classes == () and not samples.has_labels and len(samples) == 11


def test_labels_from_a_table_come_before_subfolders_and_leave_out_the_rest(tmp_path: Path) -> None:
    fill(tmp_path / "a", 6)
    fill(tmp_path / "b", 6, start=10)
    rows = [f"a\\img{k:02d}.png,10\n" for k in range(5)] + [f"img{k}.png,9\n" for k in range(10, 15)]
    (tmp_path / "labels.csv").write_text("\ufefffile,label,split\n".replace(",split", "") + "".join(rows))
    samples = load_images(tmp_path, size=8)
    assert samples.classes == ("9", "10")  # by number
    assert Counter(s.label for s in samples) == {0: 5, 1: 5}
    assert samples.skipped == (("a/img05.png", "has no label"), ("b/img15.png", "has no label"))
    absolute = tmp_path.parent / f"{tmp_path.name}-labels.csv"
    absolute.write_text("file,label\n" + "".join(f"{p},x\n" for p in sorted(tmp_path.rglob("*.png"))))
    assert load_images(tmp_path, size=8, labels=absolute).classes == ("x",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "lacks the column file and label"),
        ("file,class\nimg00.png,cat\n", "lacks the column label"),
        ("image,label\nimg00.png,cat\n", "lacks the column file"),
        (
            "file,label\nimg00.png,cat\nimg7.png,cat\nzzz.png,cat\n",
            "2 file.* line 3: 'img7.png'.*Did you mean",
        ),
        ("file,label\nimg00.png,cat\nimg00.png,dog\n", "line 3: 'img00.png' is named twice"),
        ("file,label\nimg00.png,cat,asleep\n", "line 2: there must be 2 fields.*quotes"),
        ("file,label\nimg00.png\n", "line 2: there must be 2 fields"),
        ("file,label\nsame.png,cat\n", "'same.png' could be a/same.png or b/same.png"),
        ("file,label\n../img00.png,cat\n", "1 file.*no images"),
    ],
)
def test_a_wrong_table_is_one_sentence(tmp_path: Path, text: str, expected: str) -> None:
    folder = tmp_path / "set"
    fill(folder, 8)
    for name in "ab":
        (folder / name).mkdir()
        picture(ord(name)).save(folder / name / "same.png")
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ConfigurationError, match=expected) as error:
        load_images(folder, size=8, labels=tmp_path / "table.csv")
    sentence(error)


def test_a_table_that_is_missing_or_no_text(tmp_path: Path) -> None:
    fill(tmp_path, 8)
    for argument in ("labels", "captions"):
        with pytest.raises(UsageError, match="There is no file"):
            load_images(tmp_path, size=8, **{argument: tmp_path / "none.csv"})  # type: ignore[arg-type]
    (tmp_path / "labels.csv").write_bytes(b"file,label\nimg00.png,caf\xe9\n")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        load_images(tmp_path, size=8)


def test_names_match_in_either_unicode_form(tmp_path: Path) -> None:
    fill(tmp_path, 8)
    picture(99).save(tmp_path / "cafe\u0301.png")
    (tmp_path / "captions.csv").write_text("file,caption\ncaf\u00e9.png,coffee\n", encoding="utf-8")
    assert by_source(load_images(tmp_path, size=8))["caf\u00e9.png"].caption == "coffee"


# Masks


def save_masks(folder: Path, names: list[str], values: np.ndarray, *, palette: bool = False) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = Image.fromarray(values.astype(np.uint8))
        if palette:
            mask.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
        mask.save(path)


STRIPES = np.repeat([[0] * 5 + [1] * 5 + [3] * 5 + [255] * 5], 16, axis=0)  # (16, 20), as `picture`


@pytest.mark.parametrize("palette", [False, True], ids=["grey", "palette"])
@pytest.mark.parametrize("given", [False, True], ids=["sibling", "argument"])
def test_masks_lie_in_a_parallel_folder(tmp_path: Path, palette: bool, given: bool) -> None:
    fill(tmp_path / "set" / "a", 4, suffix=".jpg")
    fill(tmp_path / "set" / "b", 4, start=4, suffix=".jpg")
    names = [f"{'a' if k < 4 else 'b'}/img{k:02d}.png" for k in range(8)]
    masks = tmp_path / ("elsewhere" if given else "set_masks")
    save_masks(masks, names, STRIPES, palette=palette)
    samples = load_images(tmp_path / "set", size=16, masks=masks if given else None)
    assert samples.has_masks and samples.mask_classes == ("0", "1", "2", "3")
    expected = [0] * 3 + [1] * 5 + [3] * 5 + [-1] * 3
    for sample in samples:
        np.testing.assert_array_equal(sample.mask, np.repeat([expected], 16, axis=0))
    (masks / "classes.txt").write_text("ground\ncat\n\ndog\nelk\nunused\n")
    named = load_images(tmp_path / "set", size=16, masks=masks)
    assert named.mask_classes == ("ground", "cat", "dog", "elk", "unused")
    (masks / "classes.txt").write_text("ground\ncat\n")
    with pytest.raises(ConfigurationError, match=r"names 2 classes and a mask holds class 3"):
        load_images(tmp_path / "set", size=16, masks=masks)


def test_masks_inside_the_folder_are_no_images_and_may_lie_flat(tmp_path: Path) -> None:
    fill(tmp_path / "x", 4)
    fill(tmp_path / "y", 4, start=4)
    save_masks(tmp_path / "masks", [f"img{k:02d}.png" for k in range(8)], STRIPES)
    samples = load_images(tmp_path, size=8, masks=tmp_path / "masks")
    assert len(samples) == 8 and samples.has_masks and samples.classes == ("x", "y")


def test_a_mask_follows_the_image_through_exif_and_another_resolution(tmp_path: Path) -> None:
    fill(tmp_path / "set", 8)
    save_masks(tmp_path / "set_masks", [f"img{k:02d}.png" for k in range(8)], STRIPES)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(50, 40, 20).save(tmp_path / "set" / "turned.jpg", exif=exif)  # shown as 20 x 40
    half = np.zeros((20, 10), np.uint8)
    half[10:] = 2
    save_masks(tmp_path / "set_masks", ["turned.png"], half)
    mask = by_source(load_images(tmp_path / "set", size=8))["turned.jpg"].mask
    np.testing.assert_array_equal(mask, np.repeat([[0] * 4 + [2] * 4], 8, axis=0).T)
    save_masks(tmp_path / "set_masks", ["turned.png"], half.T)
    ((source, reason),) = load_images(tmp_path / "set", size=8).skipped
    assert source == "turned.jpg" and "its mask is 20 x 10 and the image, upright, 20 x 40" in reason


def test_images_without_a_mask_and_bad_masks_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path / "set", 12)
    names = [f"img{k:02d}.png" for k in range(11)]
    save_masks(tmp_path / "set_masks", names, STRIPES)
    (tmp_path / "set_masks" / "img00.png").write_bytes(b"")
    picture(0).save(tmp_path / "set_masks" / "img01.png")
    assert load_images(tmp_path / "set", size=8).skipped == (
        ("img00.png", "its mask: the file is empty"),
        ("img01.png", "its mask holds colours (RGB); class numbers need a palette or grey image"),
        ("img11.png", "has no mask"),
    )
    Image.fromarray(np.full((16, 20), 300, np.uint16)).save(tmp_path / "set_masks" / "img01.png")
    with pytest.raises(UnreadableError, match="holds 300"):
        read_mask(tmp_path / "set_masks" / "img01.png")


def test_masks_that_cannot_mean_anything_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "set", 8)
    names = [f"img{k:02d}.png" for k in range(8)]
    with pytest.raises(UsageError, match="no folder"):
        load_images(tmp_path / "set", size=8, masks=tmp_path / "none")
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigurationError, match="No mask in"):
        load_images(tmp_path / "set", size=8, masks=tmp_path / "other")
    save_masks(tmp_path / "other", names, np.where(STRIPES > 0, 255, 0))
    with pytest.raises(ConfigurationError, match="0 and 255 only"):
        load_images(tmp_path / "set", size=8, masks=tmp_path / "other")
    picture(60).save(tmp_path / "set" / "img00.jpg")
    with pytest.raises(ConfigurationError, match=r"img00\.png could belong to img00\.jpg and img00\.png"):
        load_images(tmp_path / "set", size=8, masks=tmp_path / "other")
    save_masks(tmp_path / "twice", ["a/q.png", "b/q.png"], STRIPES)
    with pytest.raises(ConfigurationError, match=r"Two masks in 'twice' are named q\.png"):
        load_images(tmp_path / "set", size=8, masks=tmp_path / "twice")
