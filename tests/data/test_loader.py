"""Batches from other processes, which never hold up the work; and broken images, which are counted."""

import os
import signal
import time
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest

from innervision.data import loader
from innervision.data.loader import BadImages, Batches, load_batches
from innervision.data.sources import ImageSet
from innervision.errors import InnerVisionError
from stand_ins import write_noise_images


def images_with(folder: Path, total: int, broken: int) -> ImageSet:
    """`total` images of which every first of total/broken is no image."""
    write_noise_images(folder, total)
    paths = sorted(folder.iterdir())
    for path in paths[:: total // broken] if broken else []:
        path.write_bytes(b"not an image")
    return ImageSet(paths, [path.name for path in paths], [])


def test_a_small_set_is_read_as_a_whole(tmp_path: Path) -> None:
    images = images_with(tmp_path, 20, 4)
    bad = BadImages(images, limit=0.2)
    assert bad.look_ahead(images) == ["0000.png", "0005.png", "0010.png", "0015.png"]
    with pytest.raises(InnerVisionError, match=r"4 of 20 images are missing or broken, more than max_bad=0\.19"):
        BadImages(images, limit=0.19).look_ahead(images)


@pytest.mark.parametrize(("broken", "total", "stops"), [(3, 30, False), (1, 2, False), (1, 1, True), (5, 30, True)])
def test_a_small_set_bears_a_few_bad_images_unless_none_is_allowed(
    tmp_path: Path, broken: int, total: int, stops: bool
) -> None:
    images = images_with(tmp_path, total, broken)
    bad = BadImages(images, limit=0.01)
    if stops:
        with pytest.raises(InnerVisionError, match=f"{broken} of {total} images are missing or broken"):
            bad.look_ahead(images)
    else:
        assert len(bad.look_ahead(images)) == broken
    with pytest.raises(InnerVisionError, match="max_bad=0 allows"):
        BadImages(images, limit=0).look_ahead(images)


def test_a_sample_that_is_far_worse_than_allowed_stops_the_run(tmp_path: Path) -> None:
    """A tenth of 2000 is broken: a sample of 100 shows about 10, where 1% would show 1; all may have 20."""
    images = images_with(tmp_path, 2000, 200)
    with pytest.raises(InnerVisionError, match=r"of 100 images drawn at random are missing or broken.*max_bad=0\.01"):
        BadImages(images, limit=0.01).look_ahead(images, sample=100)


def test_a_sample_that_could_be_chance_does_not(tmp_path: Path) -> None:
    """A tenth is broken and 9% are allowed: a sample cannot tell, the count of all will."""
    images = images_with(tmp_path, 200, 20)
    bad = BadImages(images, limit=0.09)
    found = bad.look_ahead(images, sample=100)
    assert 0 < len(found) <= 18
    assert set(found) == set(bad.reasons)


def test_missing_images_do_not_count_twice(tmp_path: Path) -> None:
    images = images_with(tmp_path, 4, 1)
    listed = ImageSet(images.paths, images.names, [("gone.png", "no such file")])
    bad = BadImages(listed, limit=0.4)
    assert bad.look_ahead(listed) == ["0000.png"]
    assert bad.look_ahead(listed) == []
    assert list(bad.reasons) == ["gone.png", "0000.png"]


def batches(folder: Path, prepare: Any) -> Batches:
    """Four batches of one image."""
    return Batches(images_with(folder, 4, 0), [[number] for number in range(4)], prepare, {})


def kill(images: list[Any]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def give_what_cannot_be_handed_over(images: list[Any]) -> Any:
    return lambda: images  # as a tensor for which shared memory does not suffice


def sleep(images: list[Any]) -> None:
    time.sleep(60)


def ignore(images: list[Any]) -> int:
    return len(images)


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (kill, "DataLoader worker .*\n.*--shm-size.*--workers 0"),
        (give_what_cannot_be_handed_over, "DataLoader worker .*\n.*--workers 0"),
        (sleep, "DataLoader timed out.*\nNo image has come for 2 s"),
    ],
)
def test_a_process_that_gives_nothing_more_is_an_error_and_not_a_wait(
    tmp_path: Path, prepare: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "STALLED", 2.0)
    before, began = active_children(), time.monotonic()
    with (
        pytest.raises(InnerVisionError, match=said),
        load_batches(batches(tmp_path, prepare), range(4), workers=1) as got,
    ):
        list(got)
    assert time.monotonic() - began < 30
    assert active_children() == before


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_work_keeps_its_words(tmp_path: Path, workers: int) -> None:
    several = Batches(images_with(tmp_path, 4, 0), [[0, 1], [2, 3]], Refusing(), {})
    with pytest.raises(InnerVisionError) as caught, load_batches(several, range(2), workers=workers) as got:
        list(got)
    assert str(caught.value) == "these images do not go together"


class Refusing:
    """Takes single images only."""

    def __call__(self, images: list[Any]) -> None:
        if len(images) > 1:
            raise InnerVisionError("these images do not go together")


def test_workers_are_gone_after_an_error_of_the_main_process(tmp_path: Path) -> None:
    before = active_children()

    def fail() -> None:
        with load_batches(batches(tmp_path, ignore), range(4), workers=2) as got:
            next(got)
            assert len(active_children()) == len(before) + 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert active_children() == before


def test_workers_leave_requests_to_stop_to_the_main_process(tmp_path: Path) -> None:
    before = active_children()
    with load_batches(batches(tmp_path, ignore), range(4), workers=1) as got:
        first = next(got)
        [worker] = [child for child in active_children() if child not in before]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(worker.pid, number)
        assert [first.inputs, *(batch.inputs for batch in got)] == [1, 1, 1, 1]
