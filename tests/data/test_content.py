"""Files told apart by what they hold."""

from pathlib import Path

import numpy as np
import pytest

from innervision.data import find_images
from innervision.data.content import SAMPLE, WHOLE, content_hash, content_hashes
from stand_ins import write_noise_images


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_equal_content_has_an_equal_hash_wherever_it_lies(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(3 * WHOLE)
    assert content_hash(write(tmp_path / "a", content)) == content_hash(write(tmp_path / "b", content))


@pytest.mark.parametrize("place", [0, 1, WHOLE // 2, WHOLE - 1])
def test_a_small_file_is_read_whole(tmp_path: Path, place: int) -> None:
    content = bytearray(WHOLE)
    before = content_hash(write(tmp_path / "a", content))
    content[place] = 1
    assert content_hash(write(tmp_path / "a", content)) != before


LARGE = 1_000_000


@pytest.mark.parametrize(
    ("place", "noticed"),
    [
        (0, True),
        (SAMPLE - 1, True),
        (SAMPLE, False),
        (WHOLE, True),
        (3 * WHOLE + SAMPLE - 1, True),
        (3 * WHOLE + SAMPLE, False),
        (LARGE - SAMPLE, True),
        (LARGE - SAMPLE - 1, False),
        (LARGE - 1, True),
    ],
)
def test_of_a_large_file_the_start_of_each_stretch_and_the_end_count(tmp_path: Path, place: int, noticed: bool) -> None:
    content = bytearray(LARGE)
    before = content_hash(write(tmp_path / "a", content))
    content[place] = 1
    assert (content_hash(write(tmp_path / "a", content)) != before) == noticed


def test_of_files_of_zeros_the_size_counts(tmp_path: Path) -> None:
    sizes = (0, 1, WHOLE, WHOLE + 1, LARGE)
    assert len({content_hash(write(tmp_path / "a", bytes(size))) for size in sizes}) == len(sizes)


def test_a_file_that_is_gone_is_told_from_one_that_is_there(tmp_path: Path) -> None:
    there = write(tmp_path / "a", b"")
    gone, empty = content_hashes([tmp_path / "gone", there])
    assert gone != empty == content_hash(there)


def test_a_set_whose_images_were_exchanged_for_others_of_the_same_size_is_another(tmp_path: Path) -> None:
    write_noise_images(tmp_path / "a", 3)
    images = find_images(tmp_path / "a")
    before = images.fingerprint()
    first, second, third = (path.read_bytes() for path in images.paths)
    images.paths[2].write_bytes(third[:-1] + bytes([third[-1] ^ 1]))
    assert images.fingerprint() != before
    images.paths[2].write_bytes(third)
    assert images.fingerprint() == before
    images.paths[0].write_bytes(second)
    images.paths[1].write_bytes(first)
    assert images.fingerprint() != before


def test_a_set_copied_elsewhere_is_the_same(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_noise_images(tmp_path / folder, 3)
    assert find_images(tmp_path / "a").fingerprint() == find_images(tmp_path / "b").fingerprint()
