"""Known depth: what a file must be, and the tones in which it is shown."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from innervision.data.da2k import read_da2k
from innervision.data.depth_maps import in_tones_of, read_depth_map
from innervision.errors import InnerVisionError
from innervision.json_files import read_json


def save(path: Path, values: object, dtype: type = np.uint16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype)).save(path)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Two rows and four columns of squares, 20 pixels a side."""
    Image.new("RGB", (80, 40)).save(tmp_path / "a.jpg")
    return tmp_path / "a.jpg"


def test_values_are_read_as_they_are_and_zero_is_unknown(tmp_path: Path, image: Path) -> None:
    path = save(tmp_path / "a.png", [[0, 1, 300, 65535], [7, 8, 9, 10]])
    expected = [[np.nan, 1, 300, 65535], [7, 8, 9, 10]]
    np.testing.assert_array_equal(read_depth_map(path, image), expected)


@pytest.mark.parametrize(
    ("values", "dtype", "words"),
    [
        ([[1, 2], [3, 4]], np.uint16, "has 2 × 2 pixels, another shape than the image, which has 40 × 80"),
        ([[1, 2, 3, 4], [5, 6, 7, 8]], np.uint8, "its mode is L, not 16-bit grey"),
        ([[0, 0, 0, 0], [0, 0, 0, 0]], np.uint16, "holds no depth"),
    ],
)
def test_what_is_no_map_of_the_image_is_refused(
    tmp_path: Path, image: Path, values: object, dtype: type, words: str
) -> None:
    with pytest.raises(InnerVisionError, match=words):
        read_depth_map(save(tmp_path / "a.png", values, dtype), image)


def test_a_missing_or_broken_file_is_an_error(tmp_path: Path, image: Path) -> None:
    with pytest.raises(InnerVisionError, match=r"cannot read the depth map .*: No such file"):
        read_depth_map(tmp_path / "a.png", image)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(InnerVisionError, match="cannot read the depth map"):
        read_depth_map(tmp_path / "a.png", image)


@pytest.mark.parametrize(("turned", "fits"), [(1, True), (2, False), (3, False), (6, True), (8, True)])
def test_a_map_must_be_of_the_upright_image(tmp_path: Path, turned: int, fits: bool) -> None:
    """One that is turned by a quarter has another shape; one upside down has the same, and nobody can tell."""
    photograph = Image.new("RGB", (40, 80) if turned > 4 else (80, 40))
    photograph.getexif()[0x0112] = turned
    photograph.save(tmp_path / "a.jpg", exif=photograph.getexif())
    path = save(tmp_path / "a.png", [[1, 2, 3, 4], [5, 6, 7, 8]])
    if fits:
        assert read_depth_map(path, tmp_path / "a.jpg").shape == (2, 4)
    else:
        with pytest.raises(InnerVisionError, match="may or may not hold"):
            read_depth_map(path, tmp_path / "a.jpg")


def test_any_order_preserving_unit_of_the_expert_gives_back_its_own_map() -> None:
    """Where the expert orders all pixels as the truth does, the truth looks as its map, whatever its unit."""
    depth = np.random.default_rng(0).uniform(1, 50, (20, 30))
    for shown in (1 / depth, -np.log(depth), 100 - 3 * depth):
        np.testing.assert_allclose(in_tones_of(depth, shown), shown)


def test_pixels_of_one_depth_share_the_mean_tone_and_unknown_ones_have_none() -> None:
    depth = np.array([[1.0, 5.0, 5.0, np.nan]])
    shown = np.array([[0.0, 10.0, 4.0, 99.0]])
    np.testing.assert_array_equal(in_tones_of(depth, shown), [[10.0, 2.0, 2.0, np.nan]])
    assert np.isnan(in_tones_of(depth, np.full((1, 4), np.nan))).all()
    np.testing.assert_array_equal(in_tones_of(np.ones((1, 3)), np.array([[1.0, 2.0, 3.0]])), [[2.0, 2.0, 2.0]])


def write_benchmark(root: Path) -> Path:
    for name in ("images/indoor/a.jpg", "images/b.jpg", "other/c.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 40)).save(root / name)
    pair = '[{"point1": [1, 2], "point2": [3, 4], "closer_point": "point1"}]'
    names = ("images/indoor/a.jpg", "images/b.jpg", "other/c.jpg")
    (root / "annotations.json").write_text("{" + ", ".join(f'"{name}": {pair}' for name in names) + "}")
    assert len(read_json(root / "annotations.json")) == 3
    return root


def test_maps_lie_beside_the_pairs_under_the_names_of_the_images(tmp_path: Path) -> None:
    root = write_benchmark(tmp_path / "rooms")
    for number, name in enumerate(("indoor/a.png", "other/c.png"), 1):
        save(root / "depth" / name, np.full((2, 4), number))
    found = read_da2k(root)
    depths = {name: found.depth_map(name) for name in found.images.names}
    assert depths.pop("images/b.jpg") is None
    assert {name: depth[0, 0] for name, depth in depths.items() if depth is not None} == {
        "images/indoor/a.jpg": 1,
        "other/c.jpg": 2,
    }


def test_a_linked_folder_may_not_lead_out_of_the_benchmark(tmp_path: Path) -> None:
    root = write_benchmark(tmp_path / "rooms")
    save(tmp_path / "elsewhere/indoor/a.png", np.ones((2, 4)))
    (root / "depth").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InnerVisionError, match="lies outside of"):
        read_da2k(root).depth_map("images/indoor/a.jpg")
