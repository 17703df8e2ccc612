import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from innervision.data import IMAGE_SUFFIXES, BadImage, read_image

GREY_16 = [0, 0x8080, 3 * 257 + 128, 3 * 257 + 129, 65535]
GREY_16_AS_8 = [0, 128, 3, 4, 255]
"""One step of 8 bits is 257 steps of 16: 128 above a multiple rounds down, 129 up."""


def row(path: Path) -> list[tuple[int, int, int]]:
    """Read an image one pixel high and give its pixels."""
    image = read_image(path)
    assert image.mode == "RGB"
    assert image.height == 1
    return [tuple(pixel) for pixel in np.asarray(image)[0].tolist()]


def greys(path: Path) -> list[int]:
    pixels = row(path)
    assert all(red == green == blue for red, green, blue in pixels)
    return [red for red, _, _ in pixels]


def one_row(mode: str, pixels: list) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


def write_png(path: Path, width: int, height: int, bits: int, colour: int, data: bytes, **chunks: bytes) -> Path:
    """Write what Pillow does not: `bits` per channel, `colour` 0 grey or 2 RGB, `data` by scan lines."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    content = {"IHDR": header, **chunks, "IDAT": zlib.compress(data), "IEND": b""}
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, body in content.items():
            named = name.encode() + body
            file.write(struct.pack(">I", len(body)) + named + struct.pack(">I", zlib.crc32(named)))
    return path


def random_image(width: int = 64, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


# 8 bit


def test_rgb_keeps_every_pixel(tmp_path: Path) -> None:
    original = random_image()
    original.save(tmp_path / "a.png")
    image = read_image(str(tmp_path / "a.png"))
    assert type(image) is Image.Image
    assert (np.asarray(image) == np.asarray(original)).all()


def test_very_wide_image_keeps_its_size(tmp_path: Path) -> None:
    random_image(4000, 8).save(tmp_path / "wide.jpg")
    assert read_image(tmp_path / "wide.jpg").size == (4000, 8)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    one_row("L", [0, 7, 255]).save(tmp_path / "a.png")
    assert greys(tmp_path / "a.png") == [0, 7, 255]


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    one_row("1", [0, 255, 0]).save(tmp_path / "a.png")
    assert greys(tmp_path / "a.png") == [0, 255, 0]


def test_palette_is_looked_up(tmp_path: Path) -> None:
    image = one_row("P", [1, 0])
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / "a.png")
    assert row(tmp_path / "a.png") == [(200, 100, 50), (10, 20, 30)]


def test_ycbcr_follows_the_jfif_formula(tmp_path: Path) -> None:
    one_row("YCbCr", [(76, 85, 255), (128, 128, 128)]).save(tmp_path / "a.tif")
    red, grey = row(tmp_path / "a.tif")
    assert np.abs(np.array(red) - (76 + 1.402 * 127, 76 + 0.344136 * 43 - 0.714136 * 127, 76 - 1.772 * 43)).max() < 2
    assert grey == (128, 128, 128)


def test_cmyk_inks_take_light_away(tmp_path: Path) -> None:
    one_row("CMYK", [(0, 0, 0, 0), (0, 255, 255, 0), (255, 0, 0, 0), (0, 0, 0, 255)]).save(tmp_path / "a.tif")
    assert row(tmp_path / "a.tif") == [(255, 255, 255), (255, 0, 0), (0, 255, 255), (0, 0, 0)]


def test_inverted_inks_of_an_adobe_jpeg_are_turned_back(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 200, 100, 30)).save(tmp_path / "a.jpg", quality=100)
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()
    with Image.open(tmp_path / "a.jpg") as image:
        image.tile = [image.tile[0]._replace(args=("CMYK", ""))]  # the samples as stored
        assert np.abs(np.array(image.getpixel((8, 8))) - (255, 55, 155, 225)).max() <= 1
    pixel = np.array(read_image(tmp_path / "a.jpg").getpixel((8, 8)))
    assert np.abs(pixel - (225, 225 * 55 / 255, 225 * 155 / 255)).max() <= 2  # (1 - K) (1 - ink)


def test_content_counts_and_not_the_suffix(tmp_path: Path) -> None:
    one_row("L", [9]).save(tmp_path / "a.jpg", format="PNG")
    assert greys(tmp_path / "a.jpg") == [9]


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (4, 1), "red"), Image.new("RGB", (4, 1), "blue")
    for name in ("a.gif", "a.tif", "a.png"):
        red.save(tmp_path / name, save_all=True, append_images=[blue])
        assert row(tmp_path / name) == [(255, 0, 0)] * 4


# Transparency


def test_transparent_parts_show_white(tmp_path: Path) -> None:
    one_row("RGBA", [(10, 20, 30, 0), (10, 20, 30, 255), (0, 0, 0, 51)]).save(tmp_path / "a.png")
    assert row(tmp_path / "a.png") == [(255, 255, 255), (10, 20, 30), (204, 204, 204)]  # 255 * (1 - 51 / 255)


def test_transparent_grey_shows_white(tmp_path: Path) -> None:
    one_row("LA", [(10, 0), (10, 255), (0, 51)]).save(tmp_path / "a.png")
    assert greys(tmp_path / "a.png") == [255, 10, 204]


def test_premultiplied_grey_shows_white(tmp_path: Path) -> None:
    plain = tmp_path / "plain.tif"
    one_row("LA", [(10, 0), (10, 255), (0, 51)]).save(plain)
    extra_samples = struct.pack("<HHI", 338, 3, 1)
    data = plain.read_bytes().replace(extra_samples + b"\x02\0", extra_samples + b"\x01\0")  # 1: premultiplied
    (tmp_path / "a.tif").write_bytes(data)
    with Image.open(tmp_path / "a.tif") as image:
        assert image.mode == "La"
    assert greys(tmp_path / "a.tif") == [255, 10, 204]


@pytest.mark.parametrize(("name", "transparency"), [("a.png", 0), ("a.png", b"\x00\xff"), ("a.gif", 0)])
def test_transparent_palette_entry_shows_white(tmp_path: Path, name: str, transparency: int | bytes) -> None:
    image = one_row("P", [1, 0])
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / name, transparency=transparency)
    assert row(tmp_path / name) == [(200, 100, 50), (255, 255, 255)]


def test_transparent_colour_shows_white(tmp_path: Path) -> None:
    one_row("RGB", [(1, 2, 3), (4, 5, 6)]).save(tmp_path / "a.png", transparency=(1, 2, 3))
    assert row(tmp_path / "a.png") == [(255, 255, 255), (4, 5, 6)]


def test_transparent_16_bit_grey_shows_white(tmp_path: Path) -> None:
    data = b"\0" + struct.pack(">3H", 0, 257, 65535)
    path = write_png(tmp_path / "a.png", 3, 1, 16, 0, data, tRNS=struct.pack(">H", 257))
    assert greys(path) == [0, 255, 255]


# More than 8 bits


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, name: str) -> None:
    Image.fromarray(np.array([GREY_16], dtype=np.uint16)).save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.mode == "I;16"
    assert greys(tmp_path / name) == GREY_16_AS_8


def test_16_bit_big_endian_tiff(tmp_path: Path) -> None:
    Image.fromarray(np.array([GREY_16], dtype=">u2")).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image:
        assert image.mode == "I;16B"
    assert greys(tmp_path / "a.tif") == GREY_16_AS_8


def test_16_bit_in_32_bit_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 5 1 65535\n" + np.array(GREY_16, dtype=">u2").tobytes())
    with Image.open(tmp_path / "a.pgm") as image:
        assert image.mode == "I"
    assert greys(tmp_path / "a.pgm") == GREY_16_AS_8


def test_dark_16_bit_image_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257, 514]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert greys(tmp_path / "a.png") == [0, 1, 2]


def test_32_bit_grey_beyond_16_bits_is_scaled_by_its_largest_value(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-5, 0, 2**29, 2**30]], dtype=np.int32)).save(tmp_path / "a.tif")
    assert greys(tmp_path / "a.tif") == [0, 0, 128, 255]


def test_16_bit_colour(tmp_path: Path) -> None:
    data = b"\0" + struct.pack(">6H", 0, 0x8080, 65535, 257, 514, 771)
    assert row(write_png(tmp_path / "a.png", 2, 1, 16, 2, data)) == [(0, 128, 255), (1, 2, 3)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.2, 1.0], [0, 51, 255]),
        ([0.0, 0.2, 0.4], [0, 51, 102]),
        ([0.0, 51.0, 200.0], [0, 51, 200]),
        ([0.0, 257.0, 65535.0], [0, 1, 255]),
        ([0.0, 2e5, 1e6], [0, 51, 255]),
        ([-1.0, np.nan, np.inf, 0.2], [0, 0, 255, 51]),
    ],
)
def test_float_grey_is_white_at_1_255_65535_or_its_largest(
    tmp_path: Path, values: list[float], expected: list[int]
) -> None:
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "a.tif")
    assert greys(tmp_path / "a.tif") == expected


# EXIF


@pytest.mark.parametrize(
    ("orientation", "size", "first", "second"),
    [
        (1, (3, 2), (0, 0), (1, 0)),
        (2, (3, 2), (2, 0), (1, 0)),
        (3, (3, 2), (2, 1), (1, 1)),
        (4, (3, 2), (0, 1), (1, 1)),
        (5, (2, 3), (0, 0), (0, 1)),
        (6, (2, 3), (1, 0), (1, 1)),
        (7, (2, 3), (1, 2), (1, 1)),
        (8, (2, 3), (0, 2), (0, 1)),
    ],
)
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_exif_orientation_moves_the_corner(
    tmp_path: Path, name: str, orientation: int, size: tuple, first: tuple, second: tuple
) -> None:
    """Where the stored top-left pixel and its right neighbour are seen, by the table of the EXIF standard."""
    stored = Image.new("RGB", (3, 2))
    stored.putpixel((0, 0), (255, 0, 0))
    stored.putpixel((1, 0), (0, 255, 0))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / name, exif=exif)
    image = read_image(tmp_path / name)
    assert image.size == size
    assert image.getpixel(first) == (255, 0, 0)
    assert image.getpixel(second) == (0, 255, 0)


def test_upright_image_is_not_turned_again(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    random_image(30, 20).save(tmp_path / "a.jpg", exif=exif)
    image = read_image(tmp_path / "a.jpg")
    assert image.size == (20, 30)
    assert ImageOps.exif_transpose(image).size == (20, 30)
    assert image.info == {}


@pytest.mark.parametrize("exif", [b"Exif\0\0no tags at all", b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01", b"Exif\0\0"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_spoil_the_pixels(tmp_path: Path, exif: bytes) -> None:
    random_image().save(tmp_path / "plain.png")
    random_image().save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png").tobytes() == read_image(tmp_path / "plain.png").tobytes()


def test_unreadable_exif_text_does_not_spoil_the_pixels(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n4\nno hexadecimal digits")
    one_row("L", [1, 2]).save(tmp_path / "a.png", pnginfo=text)
    assert greys(tmp_path / "a.png") == [1, 2]


# Bad files


def reason(path: Path) -> str:
    with pytest.raises(BadImage) as caught:
        read_image(path)
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)
    assert "\n" not in caught.value.reason
    return caught.value.reason


def test_missing_file(tmp_path: Path) -> None:
    assert reason(tmp_path / "a.jpg") == "No such file or directory"


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    assert reason(tmp_path / "a.jpg") == "Is a directory"


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert reason(tmp_path / "a.jpg") == "the file is empty"


def test_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("<html>404 Not Found</html>")
    assert reason(tmp_path / "a.jpg").startswith("not an image in a known format (JPEG, PNG")


def test_program_in_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.jpg", format="EPS")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    assert reason(tmp_path / "a.jpg").startswith("not an image")


@pytest.mark.parametrize("kept", [0.5, 0.9])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif", "ppm", "jp2"])
def test_truncated_file_is_not_filled_up(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"a.{suffix}"
    random_image().save(path)
    read_image(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    assert reason(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_damaged_data(tmp_path: Path) -> None:
    random_image().save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    (tmp_path / "a.png").write_bytes(data)
    assert reason(tmp_path / "a.png")


def test_image_without_pixels(tmp_path: Path) -> None:
    assert reason(write_png(tmp_path / "a.png", 0, 5, 8, 2, b""))


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_image(30, 10).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 149)  # Pillow refuses more than twice as many
    assert "exceeds limit" in reason(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    assert read_image(tmp_path / "a.png").size == (30, 10)


def test_bad_image_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(BadImage("a.jpg", "truncated")))
    assert (error.path, error.reason) == ("a.jpg", "truncated")


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_listed_suffix_can_be_read(tmp_path: Path, suffix: str) -> None:
    random_image().convert({".pfm": "F", ".pbm": "1"}.get(suffix, "RGB")).save(tmp_path / f"a{suffix}")
    assert read_image(tmp_path / f"a{suffix}").size == (64, 64)
