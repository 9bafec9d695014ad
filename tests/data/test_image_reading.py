"""One image: every format, and every way in which a file can be bad."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import BLUE, RED, WHITE, by_source, fill, picture, sentence
from PIL import Image

from gate.data import as_samples, fit_image, load_images, load_scenes
from gate.data.images import UnreadableError, fit_mask, read_image, to_rgb
from gate.errors import ConfigurationError, UsageError

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
