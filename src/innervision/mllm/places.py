"""Where in the original image each token stands, found by experiment: no knowledge of a model's family is needed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image, fromarray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from innervision.config import VISION
from innervision.errors import InnerVisionError
from innervision.mllm.inputs import Inputs
from innervision.mllm.model import MLLM
from innervision.mllm.strips import Floats, changed_images, locate
from innervision.mllm.tiles import find_tiles

Size = tuple[int, int]
"""Height and width of an image in pixels."""

BATCH = 8
"""Images of the experiment that go through the model together."""
STRIPS = (8, 40)
"""The fewest and the most strips."""
BASES = (2, 4)
"""The fewest and the most images that strips are changed of."""
ROUNDED = (128, 64, 32, 16, 8, 4, 2)
"""Sides are rounded to multiples of these, to share one experiment among sizes."""
SQUARE = (512, 512)
"""The size whose experiment most other sizes share, where the processor brings all images to one size."""
SAMPLES = 8192
"""Numbers of a tensor that are looked at to see what the processor does with an image."""
EXPLAINED = 0.75
"""Share of a tile's tokens that must have been found within half a strip of where its lattice has them."""
AGREE = 0.25
"""How far apart, in strips, two sizes may show the same part of the image to share one experiment."""


class PlaceFinder:
    """Finds places by changing strips of an image and looking at which tokens' states answer.

    An experiment takes 2S + 1 passes of the vision tower for each of its base images (nothing of the LLM is run),
    with S = 0.7 √n strips of rows and as many of columns (8 to 40) and 256 / n base images (2 to 4), for n image
    tokens: 70 passes for the 576 tokens of LLaVA-1.5.

    Sizes share an experiment where the processor makes the same of them: images whose grey level is their row or
    their column tell which part of an image each number of its tensors shows. What is found depends on the model,
    what prepares its inputs, and the size of the image alone.
    """

    def __init__(self, mllm: MLLM, prepare: Callable[[list[Image]], Inputs]) -> None:
        """Make a finder that has found nothing yet.

        Args:
            mllm: the model.
            prepare: makes inputs of RGB images; the one whose inputs are asked about.
        """
        self.mllm = mllm
        self.prepare = prepare
        self._views = lru_cache(maxsize=1024)(self._view)
        self._experiments: dict[Size, dict[int, Floats]] = {}
        self._places: dict[Size, dict[int, Tensor]] = {}

    def find(self, inputs: Inputs, layers: Sequence[int]) -> dict[int, Tensor]:
        """Tell where the tokens of a batch stand.

        Args:
            inputs: of the batch, as `prepare` made them.
            layers: which are read.

        Returns:
            By stage, VISION (-1) for that layer and 0 for all others, (B, T, 4) float32: row and column of the
            centre of the part of the image that a token stands for, and its height and width, all as shares of the
            original image. NaN for tokens that stand for no part of it: text, markers, queries, padding.

        Raises:
            InnerVisionError: the model's states cannot be read, or an image has other tokens alone than in the batch.
        """
        stages = sorted({min(layer, 0) for layer in layers})
        sizes = [(height, width) for height, width in inputs.sizes.tolist()]
        alone = [self._of_size(size, stages) for size in sizes]
        found = {}
        for stage in stages:
            pieces = [each[stage] for each in alone]
            if stage == VISION:
                places = pad_sequence(pieces, batch_first=True, padding_value=float("nan"))
            else:
                places = torch.full((*inputs.mask.shape, 4), float("nan"))
                for row, mask, piece, size in zip(places, inputs.mask.cpu(), pieces, sizes, strict=True):
                    if (count := int(mask.sum())) != len(piece):
                        raise InnerVisionError(
                            f"{self.mllm.name} gives an image of {size[1]} × {size[0]} pixels {count} tokens in a batch"
                            f" and {len(piece)} alone, so it cannot be told where they stand: use micro_batch_size=1"
                        )
                    row[mask] = piece
            found[stage] = places.to(inputs.mask.device)
        return found

    def _of_size(self, size: Size, stages: Sequence[int]) -> dict[int, Tensor]:
        """Give the places of the tokens of an image of this size, alone.  # (T, 4) for each stage"""
        places = self._places.setdefault(size, {})
        if not places.keys() >= {*stages}:
            other, scale, shift = self._stand_in(size)
            for stage, there in self._experiment(other, stages).items():
                here = np.concatenate([there[:, :2] * scale + shift, there[:, 2:] * scale], axis=1)
                here[((here[:, :2] < 0) | (here[:, :2] > 1)).any(axis=1)] = np.nan
                places[stage] = torch.from_numpy(here).float()
        return places

    def _stand_in(self, size: Size) -> tuple[Size, Floats, Floats]:
        """Give the size whose experiment tells the places in this one: times a scale (2,), plus a shift (2,)."""
        view = self._views(size)
        tolerance = AGREE / view.strips
        rounded = [(_round(size[0], to), _round(size[1], to)) for to in ROUNDED]
        for other in dict.fromkeys([SQUARE, *rounded]):
            try:
                relation = _relation(self._views(other), view, tolerance)
            except InnerVisionError:
                continue  # the processor does not take this size
            if relation is not None:
                return other, *relation
        return size, np.ones(2), np.zeros(2)

    def _view(self, size: Size) -> "_View":
        """See what the processor makes of images of a size: black, white, and grey by rows and by columns."""
        height, width = size
        greys = [np.linspace(0.5, side - 0.5, side) / side * 255 for side in size]
        levels = [np.zeros(1), np.full(1, 255), greys[0][:, None], greys[1]]
        pixels = [np.broadcast_to(level.round().astype(np.uint8), (height, width)) for level in levels]
        inputs = self.prepare([fromarray(np.repeat(each[:, :, None], 3, axis=2)) for each in pixels])
        shows = []
        tensors = {key: value for key, value in inputs.tensors.items() if isinstance(value, Tensor)}
        for tensor in tensors.values():
            if tensor.numel() % 4 == 0 and not torch.equal(*(each := tensor.reshape(4, -1).float())[:2]):
                some = torch.randint(each.shape[1], (SAMPLES,), generator=torch.Generator().manual_seed(0))
                black, white, rows, columns = each[:, some].double()
                lit = (white - black).abs() > 0.5 * (white - black).abs().max()  # not mixed with padding
                shows.append(((torch.stack([rows, columns]) - black) / (white - black)).masked_fill(~lit, float("nan")))
        return _View(
            shapes={key: tuple(tensor.shape) for key, tensor in tensors.items()},
            ids=tuple(tensors["input_ids"][0].tolist()) if "input_ids" in tensors else (),
            shows=torch.cat(shows, dim=1).numpy() if shows else np.zeros((2, 0)),
            image_tokens=int(inputs.image_mask[0].sum()),
        )

    def _experiment(self, size: Size, stages: Sequence[int]) -> dict[int, Floats]:
        """Find the places in images of a size, also those outside of the image.  # (T, 4) for each stage"""
        places = self._experiments.setdefault(size, {})
        if not places.keys() >= {*stages}:
            view = self._views(size)
            strips = min(view.strips, *size)
            answers = [self._answers(size, stages, strips, base) for base in range(view.bases)]
            for stage in stages:
                found, weights = locate(np.sum([each[stage] for each in answers], axis=0), size)
                places[stage] = place_on_tiles(found, weights, 1 / strips)
        return places

    def _answers(self, size: Size, stages: Sequence[int], strips: int, base: int) -> dict[int, Floats]:
        """Change each strip of an image; see how far each token's states move, squared.  # (2, S, T) for each stage"""
        first: dict[int, Tensor] = {}
        moved: dict[int, list[Tensor]] = {stage: [] for stage in stages}

        def compare(stage: int, states: Tensor, mask: Tensor) -> None:
            states = states.float()
            distances = (states - first.setdefault(stage, states[:1])).square().sum(dim=-1)
            moved[stage].append(distances.cpu())

        images = changed_images(size, strips, base)
        while batch := [*islice(images, BATCH)]:
            self.mllm.visit(self.prepare(batch), compare, stages)
        return {
            stage: torch.cat(distances)[1:].double().nan_to_num(0, 0, 0).unflatten(0, (2, -1)).numpy()
            for stage, distances in moved.items()
        }


@dataclass(frozen=True)
class _View:
    """What the processor makes of an image of one size."""

    shapes: dict[str, tuple[int, ...]]
    """Of the model's arguments, for four images."""
    ids: tuple[int, ...]
    """The tokens."""
    shows: Floats
    """(2, n): the row and the column that some of the numbers show, as shares of the image; NaN for padding."""
    image_tokens: int

    @property
    def strips(self) -> int:
        """How many strips an experiment on it has."""
        return int(np.clip(round(0.7 * self.image_tokens**0.5), *STRIPS))

    @property
    def bases(self) -> int:
        """How many images strips are changed of: few tokens leave more to chance."""
        return int(np.clip(256 // max(self.image_tokens, 1), *BASES))


def _relation(model: _View, view: _View, tolerance: float) -> tuple[Floats, Floats] | None:
    """Give scale and shift (2,) each that lead from what one size shows to what another does, if there are any."""
    if model.shapes != view.shapes or model.ids != view.ids:
        return None
    known, wanted = (np.isfinite(each.shows).all(axis=0) for each in (model, view))
    both = known & wanted
    if both.sum() < SAMPLES / 100 or (wanted & ~known).mean() > 0.01:
        return None
    scale, shift = np.ones(2), np.zeros(2)
    for axis in range(2):
        x, y = model.shows[axis], view.shows[axis]
        scale[axis], shift[axis] = np.polyfit(x[both], y[both], 1)
        mapped = x * scale[axis] + shift[axis]
        if scale[axis] <= 0 or np.quantile(np.abs(mapped - y)[both], 0.95) > tolerance:
            return None
    gone = known & ~wanted
    mapped = model.shows[:, gone] * scale[:, None] + shift[:, None]
    inside = ((mapped > tolerance) & (mapped < 1 - tolerance)).all(axis=0)
    return (scale, shift) if inside.sum() <= 0.01 * gone.size else None


def _round(side: int, to: int) -> int:
    return max(to, (side + to // 2) // to * to)


def place_on_tiles(found: Floats, weights: Floats, strip: float) -> Floats:
    """Replace places that were found one by one by those on the lattices that explain them.

    Args:
        found: (2, T), rows and columns.
        weights: (T,), how much each token counts; 0 for those that were found nowhere.
        strip: the width of a strip.

    Returns:
        (T, 4): row and column of the centre, height and width; NaN for tokens that are on no lattice. All are where
        lattices explain less than half of what was found, or one only if it explains most of its tokens to within
        half a strip.
    """
    places = np.full((len(weights), 4), np.nan)
    explained = 0.0
    usual = [0.0, 0.0]
    for tile in sorted(find_tiles(found, weights, strip), key=lambda tile: tile.start - tile.stop):  # the largest first
        tokens, lattice = tile.tokens()
        weight = weights[tokens]
        axes = [fit_axis(lattice[axis], found[axis, tokens], weight, strip, usual[axis]) for axis in range(2)]
        centres = np.stack([offset + spacing * lattice[axis] for axis, (offset, spacing) in enumerate(axes)])
        fits = (np.abs(centres - found[:, tokens]) < strip / 2).all(axis=0)
        if weight[fits].sum() < EXPLAINED * weight.sum():
            continue
        explained += weight.sum()
        usual = [before or spacing for before, (_, spacing) in zip(usual, axes, strict=True)]
        sizes = np.broadcast_to(np.array([[spacing] for _, spacing in axes]), centres.shape)
        shown = _shown(lattice, weight)
        places[tokens[shown]] = np.concatenate([centres, sizes])[:, shown].T
    return places if explained >= weights.sum() / 2 else np.full_like(places, np.nan)


def fit_axis(
    line: NDArray[np.int64], found: Floats, weights: Floats, strip: float, usual: float = 0.0
) -> tuple[float, float]:
    """Fit found = offset + spacing × line, robustly.

    Lines that reach over the edge of the image are left out if two others remain: they show less than they stand for,
    so that they are found too far inside. Several lines that are found within one strip do not tell their spacing: it
    is taken to be `usual`, where that is known. One line alone is taken to reach to the nearer edge.
    """
    use = weights > 0
    offset, spacing = float(np.average(found, weights=weights)), 0.0
    for _ in range(10):
        if len(np.unique(line[use])) < 2:
            break
        error = np.abs(found - offset - spacing * line) if spacing else np.zeros_like(found)
        trust = weights / np.maximum(1, error / (strip / 2))  # Huber's
        spacing, offset = (float(each) for each in np.polyfit(line[use], found[use], 1, w=np.sqrt(trust[use])))
        near, far = offset + (line - 0.5) * spacing, offset + (line + 0.5) * spacing
        inside = (weights > 0) & (near > -0.1 * spacing) & (far < 1 + 0.1 * spacing)
        use = inside if len(np.unique(line[inside])) >= 2 else weights > 0
    if usual and 0 < spacing * (line.max() - line.min()) < strip:
        middle = offset + spacing * (line.max() + line.min()) / 2
        offset, spacing = middle - usual * (line.max() + line.min()) / 2, usual
    return offset, spacing or 2 * min(offset, 1 - offset)


def _shown(lattice: NDArray[np.int64], weights: Floats) -> NDArray[np.bool_]:
    """Tell which tokens of a tile stand for something: not lines and columns of which few were found (padding)."""
    counts = [np.bincount(line, weights > 0)[line] for line in lattice]
    return np.all([count > count.max() / 2 for count in counts], axis=0)
