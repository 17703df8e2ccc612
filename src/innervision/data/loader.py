"""Images read and prepared in the background, batch by batch, in an order that is fixed beforehand."""

import os
import random
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Any

from PIL.Image import Image
from scipy.stats import binomtest
from torch.utils.data import DataLoader, Dataset

from innervision.data.content import content_hash
from innervision.data.images import BadImage, read_image
from innervision.data.sources import ImageSet
from innervision.errors import InnerVisionError, first_line

Truth = Callable[[str, Image], Any]
"""Gives what is known of an image, by its name and what was read of it; an InnerVisionError means that it cannot."""


@dataclass
class Batch:
    """Images as the models take them; broken ones are left out."""

    names: list[str]
    """Of the B images that are here, in order."""
    inputs: Any
    """What the MLLM takes; None where no image is left."""
    pixels: dict[str, Any]
    """For every target what its expert takes of the `known` images: (K, 3, H, W), or K tensors (3, h, w)."""
    bad: list[tuple[str, str]]
    """(name, reason) of every image that is left out."""
    truths: list[Any] = field(default_factory=list)
    """What is known of each of the `known` images, where that was asked for."""
    following: str | None = None
    """The partner of the last image, where that is not in the batch: only experts see it."""
    paired: bool = False
    """Whether images have partners."""
    hashes: dict[str, str] = field(default_factory=dict)
    """By the names of the images a hash of their file's content."""

    @property
    def known(self) -> list[str]:
        """Names of the images that the experts see: those of the batch, and the partner of the last one."""
        return self.names if self.following is None else [*self.names, self.following]

    @property
    def partners(self) -> dict[int, int]:
        """By the place of an image in `names` the place of its partner in `known`; none where there is no other."""
        count = len(self.known)
        return {row: (row + 1) % count for row in range(len(self.names))} if self.paired and count > 1 else {}

    def pin_memory(self) -> "Batch":
        """Give a copy in page-locked memory (what a DataLoader asks for)."""
        inputs = self.inputs.pin_memory() if self.inputs is not None else None
        pixels = {
            name: [each.pin_memory() for each in images] if isinstance(images, list) else images.pin_memory()
            for name, images in self.pixels.items()
        }
        return replace(self, inputs=inputs, pixels=pixels)


@dataclass
class _Read:
    """An image that the models can take."""

    name: str
    image: Image
    truth: Any
    hash: str


@dataclass
class Batches(Dataset[Batch | InnerVisionError]):
    """Reads and prepares batches on the CPU; it holds no weights, so that worker processes can do it."""

    images: ImageSet
    order: Sequence[Sequence[int]]
    """For every batch the indices of its images."""
    prepare: Callable[[list[Image]], Any]
    """Makes the MLLM's inputs; an InnerVisionError means that it cannot take one of the images."""
    preparers: Mapping[str, Callable[[list[Image]], Any]]
    """For every target what makes its expert's pixels."""
    truth: Truth | None = None
    """Gives what is known of an image."""
    paired: bool = False
    """Whether each image has a partner: the next good one in the order of all batches, the first after the last."""

    def __len__(self) -> int:
        """Count the batches."""
        return len(self.order)

    def __getitem__(self, index: int) -> Batch | InnerVisionError:
        """Read and prepare one batch; an error that stops the work is given back, so that it keeps its words."""
        try:
            return self.prepare_batch(index)
        except InnerVisionError as error:
            return error

    def prepare_batch(self, index: int) -> Batch:
        """Read and prepare one batch.

        Raises:
            InnerVisionError: the MLLM takes none of the images alone, or not together.
        """
        bad: list[tuple[str, str]] = []
        read = [good for i in self.order[index] if (good := self._read(i, bad)) is not None]
        if not read:
            return Batch([], None, {}, bad)
        try:
            inputs = self.prepare([each.image for each in read])
        except InnerVisionError:
            refused = {each.name: reason for each in read if (reason := self._refusal(each.image)) is not None}
            if not refused:
                raise
            bad.extend(refused.items())
            read = [each for each in read if each.name not in refused]
            if not read:
                return Batch([], None, {}, bad)
            inputs = self.prepare([each.image for each in read])
        following = self._following(index) if self.paired else None
        known = read if following is None else [*read, following]
        return Batch(
            names=[each.name for each in read],
            inputs=inputs,
            pixels={name: prepare([each.image for each in known]) for name, prepare in self.preparers.items()},
            bad=bad,
            truths=[each.truth for each in known],
            following=None if following is None else following.name,
            paired=self.paired,
            hashes={each.name: each.hash for each in read},
        )

    def _read(self, i: int, bad: list[tuple[str, str]]) -> _Read | None:
        """Read an image, or add it to `bad`."""
        name, path = self.images.names[i], self.images.paths[i]
        try:
            image = read_image(path)
            truth = self.truth(name, image) if self.truth else None
        except (BadImage, InnerVisionError) as error:
            bad.append((name, error.reason if isinstance(error, BadImage) else str(error)))
            return None
        return _Read(name, image, truth, content_hash(path))

    def _refusal(self, image: Image) -> str | None:
        """Say why the MLLM cannot take an image, or None."""
        try:
            self.prepare([image])
        except InnerVisionError as error:
            return str(error)
        return None

    def _following(self, index: int) -> _Read | None:
        """Read the next good image after a batch, going round; None where there is none outside of the batch."""
        after = chain.from_iterable(chain(self.order[index + 1 :], self.order[:index]))
        found = (good for i in after if (good := self._read(i, [])) is not None)
        return next((good for good in found if self._refusal(good.image) is None), None)


STALLED = 600.0
"""Seconds without a batch after which its images are taken to be out of reach."""


@contextmanager
def load_batches(
    batches: Batches, numbers: Sequence[int], *, workers: int = 0, pin_memory: bool = False
) -> Iterator[Iterator[Batch]]:
    """Give the batches of these numbers, in their order, prepared by `workers` processes (0 = in this one).

    The processes are gone when the block ends, however it ends.

    Raises:
        InnerVisionError: one of the processes was killed or fails, or gives no batch for `STALLED` seconds.
    """
    workers = min(workers, len(numbers))
    others = set(active_children())
    loader = iter(
        DataLoader(
            batches,
            sampler=numbers,
            batch_size=None,
            num_workers=workers,
            pin_memory=pin_memory,
            timeout=STALLED if workers else 0,
            worker_init_fn=_begin_worker,
        )
    )
    try:
        yield _raising(loader)
    except RuntimeError as error:
        if not re.match(r"DataLoader (worker|timed out)", str(error)):
            raise
        raise InnerVisionError(f"cannot read the images: {first_line(error)}\n{_advice(str(error))}") from error
    finally:
        _end_workers([child for child in active_children() if child not in others])


def _raising(loader: Iterator[Batch | InnerVisionError]) -> Iterator[Batch]:
    """Raise the errors that workers give in the place of a batch."""
    for batch in loader:
        if isinstance(batch, InnerVisionError):
            raise batch
        yield batch


def _advice(error: str) -> str:
    if "timed out" in error:
        return f"No image has come for {STALLED:.0f} s: see whether the drive that holds them answers"
    return (
        "A process that prepares images has ended. Where shared memory is small, as in containers, give more "
        "(docker run --shm-size 8g) or prepare images in the main process (--workers 0); where all memory is small, "
        "lower --workers"
    )


def _begin_worker(worker: int) -> None:
    """Leave requests to stop to the main process, and end where a batch cannot be handed over."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # they may go to all processes of a group
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)
    # Else the batch would be lost, and the main process would wait for it. The method is there to be replaced, but
    # type checkers do not know it.
    setattr(Queue, "_on_queue_feeder_error", staticmethod(lambda error, batch: os._exit(1)))  # noqa: B010


def _end_workers(workers: Sequence[BaseProcess]) -> None:
    """End processes that ignore requests to stop."""
    if not workers:
        return
    try:
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would raise that they were killed
    except ValueError:  # not in the main thread, where no signal arrives
        before = None
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(5)
    if before is not None:
        signal.signal(signal.SIGCHLD, before)


FEW = 3
"""Bad images that a set bears whatever its size (half of the smallest sets), unless none is allowed."""


class BadImages:
    """Counts images that are missing or broken, and stops when there are too many."""

    def __init__(self, images: ImageSet, limit: float) -> None:
        """Start with what the source lists but does not hold.

        Args:
            images: of the run.
            limit: the largest share of bad images, 0…1.

        Raises:
            InnerVisionError: there are already too many.
        """
        self.total = len(images) + len(images.missing)
        self.limit = limit
        self.reasons: dict[str, str] = {}
        self.add(images.missing)

    def add(self, bad: Sequence[tuple[str, str]]) -> list[str]:
        """Count more (name, reason), each image once, and name those not known before.

        Raises:
            InnerVisionError: there are now too many.
        """
        new = [name for name, _ in bad if name not in self.reasons]
        self.reasons.update(bad)
        allowed = max(self.limit * self.total, min(FEW, self.total // 2)) if self.limit else 0
        if len(self.reasons) > allowed:
            raise self._too_many(f"{len(self.reasons)} of {self.total} images", self.reasons)
        return new

    def look_ahead(self, images: ImageSet, sample: int = 500) -> list[str]:
        """Read some images before the work starts: all of a small set, a fixed random sample of a large one.

        Returns:
            The names of the broken ones, which count from now on.

        Raises:
            InnerVisionError: there are too many, or so many in the sample that fewer than `limit` of all could
                hardly be broken (one-sided binomial test, p < 0.001).
        """
        chosen = sorted(random.Random(0).sample(range(len(images)), min(sample, len(images))))
        broken = {}
        for i in chosen:
            try:
                read_image(images.paths[i])
            except BadImage as error:
                broken[images.names[i]] = error.reason
        new = self.add(list(broken.items()))
        if (
            broken
            and len(chosen) < len(images)
            and binomtest(len(broken), len(chosen), self.limit, alternative="greater").pvalue < 0.001
        ):
            raise self._too_many(f"{len(broken)} of {len(chosen)} images drawn at random", broken)
        return new

    def _too_many(self, count: str, reasons: Mapping[str, str]) -> InnerVisionError:
        shown = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3])
        return InnerVisionError(
            f"{count} are missing or broken, more than max_bad={self.limit:g} allows "
            f"({shown}{'; …' if len(reasons) > 3 else ''})"
        )
