"""Folders, named data and images in memory as samples: every format, every way in which a file can be bad."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gate.data import DATA, as_samples, fit_image, load_data, load_images, load_scenes
from gate.data.images import UnreadableError, fit_mask, read_image, read_mask, to_rgb
from gate.data.order import interleave
from gate.errors import ConfigurationError, GateError, UsageError
from gate.sample import Sample, SampleSet, content_id
from gate.tiny.scenes import CLASSES

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def picture(number: int, width: int = 20, height: int = 16) -> Image.Image:
    """A noise picture that only `number` has."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def fill(folder: Path, count: int = 10, *, start: int = 0, suffix: str = ".png") -> list[Path]:
    """`count` pictures img00.png, img01.png, ... in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"img{number:02d}{suffix}" for number in range(start, start + count)]
    for number, path in enumerate(paths, start):
        picture(number + 1000 * len(folder.parts)).save(path)
    return paths


def by_source(samples: SampleSet) -> dict[str, Sample]:
    return {s.source: s for s in samples}


def sentence(error: pytest.ExceptionInfo[GateError]) -> str:
    """The message, after checking that it is one line for a person."""
    text = str(error.value)
    assert "\n" not in text and text.endswith((".", ")", "?"))
    return text


# One image: resizing and cropping


def test_fit_equals_resizing_the_shorter_side_and_cropping_the_centre() -> None:
    image = picture(0, 128, 64)
    plain = np.asarray(image.resize((32, 16), Image.Resampling.LANCZOS).crop((8, 0, 24, 16)))
    np.testing.assert_array_equal(fit_image(image, 16), plain)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (65, 33), (7, 90), (1, 1), (3, 2), (1, 5000)])
def test_fit_gives_a_square_of_any_picture(width: int, height: int) -> None:
    fitted = fit_image(picture(1, width, height), 16)
    assert fitted.shape == (16, 16, 3) and fitted.dtype == np.uint8 and fitted.flags.writeable


def test_fit_leaves_a_picture_of_the_right_size_as_it_is_and_the_argument_untouched() -> None:
    image = picture(2, 16, 16)
    before = np.array(image)
    np.testing.assert_array_equal(fit_image(image, 16), before)
    np.testing.assert_array_equal(np.asarray(image), before)


def test_masks_are_cropped_where_the_image_is_and_never_blended() -> None:
    values = np.zeros((30, 60), np.int16)
    values[:, 15:30], values[:, 30:45], values[:, 45:] = 1, 7, -1
    fitted = fit_mask(values, 10)
    np.testing.assert_array_equal(fitted, np.repeat([[1] * 5 + [7] * 5], 10, axis=0))


@pytest.mark.parametrize("size", [0, -3])
def test_an_impossible_size_is_refused(size: int, tmp_path: Path) -> None:
    for call in (
        lambda: fit_image(picture(0), size),
        lambda: load_images(tmp_path, size=size),
        lambda: load_scenes(n=2, size=size),
        lambda: as_samples([picture(0)], size),
    ):
        with pytest.raises(UsageError):
            call()


# One image: formats


def halves(mode: str, left: object, right: object) -> Image.Image:
    image = Image.new(mode, (16, 8), left)  # type: ignore[arg-type]
    image.paste(right, (8, 0, 16, 8))  # type: ignore[arg-type]
    return image


def palette_with_transparency() -> Image.Image:
    image = Image.new("P", (16, 8), 0)
    image.putpalette([*BLUE, *RED])
    image.paste(1, (8, 0, 16, 8))
    image.info["transparency"] = 0
    return image


def deep_grey() -> Image.Image:
    values = np.zeros((8, 16), np.uint16)
    values[:, 8:] = 200 * 257
    return Image.fromarray(values)


FORMATS: list[tuple[str, Image.Image, tuple[int, int, int], tuple[int, int, int]]] = [
    ("rgb.png", halves("RGB", RED, BLUE), RED, BLUE),
    ("rgb.bmp", halves("RGB", RED, BLUE), RED, BLUE),
    ("rgb.webp", halves("RGB", RED, BLUE), RED, BLUE),
    ("rgb.tif", halves("RGB", RED, BLUE), RED, BLUE),
    ("rgba.png", halves("RGBA", (*RED, 255), (0, 0, 255, 0)), RED, WHITE),
    ("half.png", halves("RGBA", (0, 0, 0, 128), (*BLUE, 255)), (127, 127, 127), BLUE),
    ("grey.png", halves("L", 40, 200), (40, 40, 40), (200, 200, 200)),
    ("greyalpha.png", halves("LA", (40, 255), (40, 0)), (40, 40, 40), WHITE),
    ("bits.png", halves("1", 0, 1), (0, 0, 0), WHITE),
    ("palette.png", halves("RGB", RED, BLUE).quantize(2), RED, BLUE),
    ("transparent.png", palette_with_transparency(), WHITE, RED),
    ("transparent.gif", palette_with_transparency(), WHITE, RED),
    ("deep.png", deep_grey(), (0, 0, 0), (200, 200, 200)),
    ("deep.tif", deep_grey(), (0, 0, 0), (200, 200, 200)),
    ("float.tif", Image.fromarray(np.asarray(deep_grey(), np.float32) / 65535), (0, 0, 0), (200, 200, 200)),
    ("cmyk.tif", halves("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)), RED, BLUE),
    ("cmyk.jpg", halves("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)), RED, BLUE),
    ("grey.jpeg", halves("L", 40, 200), (40, 40, 40), (200, 200, 200)),
    ("UPPER.JPG", halves("RGB", RED, BLUE), RED, BLUE),
]


@pytest.mark.parametrize(("name", "image", "left", "right"), FORMATS, ids=[f[0] for f in FORMATS])
def test_every_format_becomes_the_rgb_that_a_viewer_shows(
    tmp_path: Path, name: str, image: Image.Image, left: tuple[int, int, int], right: tuple[int, int, int]
) -> None:
    options = {"lossless": True} if name.endswith("webp") else {}
    image.save(tmp_path / name, **options)
    fill(tmp_path, 8)
    shown = read_image(tmp_path / name)
    assert shown.mode == "RGB" and shown.size == (16, 8)
    np.testing.assert_allclose(shown.getpixel((2, 4)), left, atol=6)  # JPEG
    np.testing.assert_allclose(shown.getpixel((13, 4)), right, atol=6)
    sample = by_source(load_images(tmp_path, size=8))[name]
    assert sample.image.shape == (8, 8, 3)
    np.testing.assert_allclose(sample.image[4, 1], left, atol=12)


def test_16_bit_grey_keeps_its_gradation(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(values).save(tmp_path / "ramp.png")
    shown = np.asarray(read_image(tmp_path / "ramp.png"))[0, :, 0]
    np.testing.assert_array_equal(shown, np.arange(256))


def test_a_gif_gives_its_first_frame(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)
    first.save(tmp_path / "moving.gif", save_all=True, append_images=[second])
    assert read_image(tmp_path / "moving.gif").getpixel((4, 4)) == RED


def test_a_phone_photo_with_a_second_picture_in_it_gives_the_first(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)
    first.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[second])
    np.testing.assert_allclose(read_image(tmp_path / "phone.jpg").getpixel((4, 4)), RED, atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone_once(tmp_path: Path, orientation: int) -> None:
    upright = Image.new("RGB", (24, 16), WHITE)
    upright.paste(RED, (0, 0, 12, 8))
    upright.paste(BLUE, (12, 8, 24, 16))
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(inverse[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "turned.png")), np.asarray(upright))
    np.testing.assert_array_equal(
        fit_image(read_image(tmp_path / "turned.png"), 16), fit_image(upright, 16), "turned a second time"
    )
    with Image.open(tmp_path / "turned.png") as opened:
        np.testing.assert_array_equal(as_samples([opened], 16)[0].image, fit_image(upright, 16))


def test_numbers_without_a_range_are_refused() -> None:
    for values in (
        np.array([[0, 70000]], np.int32),
        np.array([[0, 2.0]], np.float32),
        np.array([[0, np.nan]], np.float32),
    ):
        with pytest.raises(UnreadableError, match="outside 0 to"):
            to_rgb(Image.fromarray(values))


# Files that cannot be read


def huge_png(path: Path, width: int, height: int) -> None:
    """A few bytes that claim to be width x height."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


def truncated(path: Path) -> None:
    picture(0, 200, 200).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damaged(path: Path) -> None:
    picture(0, 200, 200).save(path)
    data = bytearray(path.read_bytes())
    data[200:400] = bytes(200)
    path.write_bytes(data)


BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "zero bytes": ("bad.png", lambda p: p.write_bytes(b""), "empty"),
    "text": ("bad.jpg", lambda p: p.write_text("no picture"), "not an image"),
    "truncated png": ("bad.png", truncated, "cannot be decoded|truncated"),
    "truncated jpg": ("bad.jpg", truncated, "cannot be decoded.*truncated"),
    "truncated webp": ("bad.webp", truncated, "not an image|cannot be decoded"),
    "damaged png": ("bad.png", damaged, "cannot be decoded"),
    "huge": ("bad.png", lambda p: huge_png(p, 12_000, 12_000), "12000 x 12000 .* 100 megapixels"),
    "a bomb": ("bad.png", lambda p: huge_png(p, 60_000, 60_000), "100 megapixels"),
    "broken link": ("bad.png", lambda p: p.symlink_to("nowhere.png"), "not a regular file"),
    "another format": ("bad.png", lambda p: picture(0).save(p, format="PPM"), "not an image"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("error")
def test_a_bad_file_is_skipped_with_its_reason(tmp_path: Path, case: str) -> None:
    name, make, reason = BAD[case]
    fill(tmp_path, 8)
    make(tmp_path / name)
    samples = load_images(tmp_path, size=8)
    assert len(samples) == 8
    assert [source for source, _ in samples.skipped] == [name]
    with pytest.raises(UnreadableError, match=reason):
        read_image(tmp_path / name)
    assert str(tmp_path) not in samples.skipped[0][1], "a reason must not carry the machine's paths"


def test_a_file_without_permission_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = fill(tmp_path, 9)[3]
    opened = Image.open

    def refuse(path: Path, **kwargs: object) -> Image.Image:
        if path == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", refuse)  # root, who may run this, can read every file
    assert load_images(tmp_path, size=8).skipped == (("img03.png", "Permission denied"),)


def test_just_under_the_limit_of_pixels_is_tried(tmp_path: Path) -> None:
    huge_png(tmp_path / "large.png", 10_000, 10_000)
    with pytest.raises(UnreadableError, match="decoded"):
        read_image(tmp_path / "large.png")


def test_more_than_a_fifth_unreadable_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, 12)
    for number in range(3):
        (tmp_path / f"z{number}.png").write_bytes(b"")
    assert len(load_images(tmp_path, size=8).skipped) == 3  # exactly a fifth
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ConfigurationError) as error:
        load_images(tmp_path, size=8)
    text = sentence(error)
    assert "4 of 16" in text and "20%" in text and "a.png the file is empty" in text


def test_the_share_is_that_of_the_folder_not_of_the_files_that_a_limit_reads(tmp_path: Path) -> None:
    fill(tmp_path, 40)
    for number in range(9):
        (tmp_path / f"z{number}.png").write_bytes(b"")  # 18 %
    for seed in range(20):
        assert len(load_images(tmp_path, size=8, limit=8, seed=seed)) == 8
    for number in range(9, 20):
        (tmp_path / f"z{number}.png").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="20 of 60"):
        load_images(tmp_path, size=8, limit=40)


# Folders


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as missing:
        load_images(tmp_path / "nowhere", size=8)
    assert "no folder" in sentence(missing)
    (file,) = fill(tmp_path, 1)
    with pytest.raises(UsageError) as not_a_folder:
        load_images(file, size=8)
    assert "is a file" in sentence(not_a_folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError) as empty:
        load_images(tmp_path / "empty", size=8)
    assert "is empty" in sentence(empty)
    (tmp_path / "empty" / "a.heic").write_bytes(b"x")
    with pytest.raises(UsageError) as other:
        load_images(tmp_path / "empty", size=8)
    assert "1 files, none of them an image" in sentence(other)


def test_fewer_than_eight_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, 7)
    with pytest.raises(ConfigurationError) as error:
        load_images(tmp_path, size=8)
    assert "7 readable samples; at least 8" in sentence(error)
    picture(7).save(tmp_path / "one.png")
    picture(7).save(tmp_path / "same.png")
    assert len(load_images(tmp_path, size=8)) == 8
    (tmp_path / "one.png").unlink()
    (tmp_path / "same.png").write_bytes(b"")
    with pytest.raises(ConfigurationError) as one_bad:
        load_images(tmp_path, size=8)
    assert "same.png the file is empty" in sentence(one_bad)
    with pytest.raises(UsageError, match="at least 8"):
        load_images(tmp_path, size=8, limit=3)
    assert len(load_images(tmp_path, size=8, limit=3, minimum=2)) == 3


def test_recursive_hidden_files_aside_and_links_that_go_round(tmp_path: Path) -> None:
    fill(tmp_path / "a" / "b", 5)
    fill(tmp_path / "a", 5, start=50)
    fill(tmp_path / ".cache", 3)
    (tmp_path / "a" / "._img.png").write_bytes(b"a resource fork")
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    samples = load_images(tmp_path, size=8)
    assert len(samples) == 10 and not samples.skipped
    assert {"a/b/img00.png", "a/img50.png"} <= set(by_source(samples))
    assert samples.name == tmp_path.name and all(s.id == content_id(s.image) for s in samples)


def test_a_link_to_a_folder_of_images_is_followed(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", 8)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
    assert len(load_images(tmp_path / "set", size=8)) == 8


def test_second_copies_are_kept_once_and_listed(tmp_path: Path) -> None:
    fill(tmp_path, 9)
    picture(1).save(tmp_path / "x.png")
    picture(1).save(tmp_path / "y.bmp")
    samples = load_images(tmp_path, size=8)
    assert len(samples) == 10 and len({s.id for s in samples}) == 10
    ((source, reason),) = samples.skipped
    kept = ({"x.png", "y.bmp"} - {source}).pop()
    assert reason == f"is the same picture as {kept}" and kept in by_source(samples)


# The choice of a limit


def test_a_limit_is_a_draw_of_the_seed_and_a_prefix_of_a_larger_one(tmp_path: Path) -> None:
    fill(tmp_path, 30)
    order = [s.source for s in load_images(tmp_path, size=8, seed=3)]
    assert [s.source for s in load_images(tmp_path, size=8, seed=3, limit=12)] == order[:12]
    assert [s.source for s in load_images(tmp_path, size=8, seed=4, limit=30)] != order
    assert sorted(order) == [f"img{k:02d}.png" for k in range(30)]
    assert (
        load_images(tmp_path, size=8, limit=99).fingerprint() == load_images(tmp_path, size=8).fingerprint()
    )


def test_the_order_does_not_come_from_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "set" / "a", 10)
    fill(tmp_path / "set" / "b" / "c", 10, start=20)
    expected = load_images(tmp_path / "set", size=8, limit=9).fingerprint()
    walk = os.walk

    def backwards(*args: object, **kwargs: object):  # type: ignore[no-untyped-def]
        for parent, folders, files in walk(*args, **kwargs):  # type: ignore[call-overload]
            folders.reverse()
            yield parent, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    assert load_images(tmp_path / "set", size=8, limit=9).fingerprint() == expected
    (tmp_path / "set").rename(tmp_path / "moved")
    assert load_images(tmp_path / "moved", size=8, limit=9).fingerprint() == expected


def test_a_limit_takes_evenly_from_every_label_that_has_enough(tmp_path: Path) -> None:
    for number, (name, count) in enumerate({"cat": 20, "dog": 3, "elk": 9}.items()):
        fill(tmp_path / name, count, start=30 * number)
    samples = load_images(tmp_path, size=8, limit=13)
    assert samples.classes == ("cat", "dog", "elk") and samples.has_labels
    assert Counter(s.label for s in samples) == {0: 5, 1: 3, 2: 5}
    assert Counter(s.label for s in load_images(tmp_path, size=8, limit=9)) == {0: 3, 1: 3, 2: 3}


def test_a_bad_file_does_not_cost_its_label_a_place(tmp_path: Path) -> None:
    fill(tmp_path / "cat", 10)
    fill(tmp_path / "dog", 10, start=20)
    for path in sorted((tmp_path / "cat").iterdir())[:3]:
        path.write_bytes(b"")
    for seed in range(5):
        assert Counter(s.label for s in load_images(tmp_path, size=8, limit=12, seed=seed)) == {0: 6, 1: 6}


def test_interleave_gives_one_of_each_per_round_until_all_are_exhausted() -> None:
    streams = {"a": [1, 2, 3], "b": [10], "c": [100, 200]}
    drawn = list(interleave({k: iter(v) for k, v in streams.items()}, seed=0))
    assert set(drawn[:3]) == {1, 10, 100} and set(drawn[3:5]) == {2, 200} and drawn[5:] == [3]
    many = [list(interleave({k: iter([k]) for k in "abcd"}, seed)) for seed in range(30)]
    assert len({tuple(order) for order in many}) > 10, "the order within a round must vary"


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
    assert set(DATA) == {"scenes-held-out", "scenes-trained", "scenes-all"}
    for name, entry in DATA.items():
        assert entry.name == name and entry.summary and "\n" not in entry.summary
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
