"""The experiment behind places: strips of an image are changed, and the tokens whose states answer tell their strip."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import PIL.Image
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GRAIN = 32
"""The images of the experiment have GRAIN × GRAIN patches of random colours."""
ANSWERS = 1e-3
"""A token answers if its states move by more than this share of what those of others move by (squared)."""
FLANK = 0.2
"""Strips around the one that a token answers most to count as long as their answers are above this share of it."""
CLEAR = 0.3
"""Share of a token's answers, above chance, that comes from its own strips where it is sure to have a place."""
CHANCE = 0.05
"""The same, of a token that has none."""


def changed_images(size: tuple[int, int], strips: int, base: int) -> Iterator[PIL.Image.Image]:
    """Give an image of random colours, then the same with the colours of one strip inverted: rows, then columns.

    Args:
        size: height and width in pixels.
        strips: S, how many there are of each.
        base: number of the image of random colours; the same on every call.

    Returns:
        1 + 2S RGB images.
    """
    colours = np.random.default_rng(base).integers(0, 256, (GRAIN, GRAIN, 3), dtype=np.uint8)
    rows, columns = (np.arange(side) * GRAIN // side for side in size)
    pixels = colours[rows[:, None], columns]  # (height, width, 3)
    yield PIL.Image.fromarray(pixels)
    for axis, side in enumerate(size):
        edges = strip_edges(side, strips)
        for start, stop in pairwise(edges):
            changed = pixels.copy()
            strip = (slice(None),) * axis + (slice(start, stop),)
            changed[strip] = 255 - changed[strip]
            yield PIL.Image.fromarray(changed)


def strip_edges(side: int, strips: int) -> list[int]:
    """Divide `side` pixels into strips of equal width, as far as pixels allow.  # strips + 1 edges"""
    return [round(edge) for edge in np.linspace(0, side, strips + 1)]


def locate(answers: Floats, size: tuple[int, int]) -> tuple[Floats, Floats]:
    """Find the row and the column that each token answers to.

    What all tokens answer to a strip alike is taken off first: a change anywhere reaches every token by attention.
    The place is the mean of the strips around the one that is answered most, weighted by the answers.

    Args:
        answers: (2, S, T), by how much a token's states move, squared, for rows and columns that change.
        size: height and width of the image in pixels.

    Returns:
        found: (2, T), row and column as shares of the image; 0.5 for tokens that do not answer.
        weights: (T,), from 0 (does not answer, or to all strips alike) to 1 (to some strips alone).
    """
    _, strips, num_tokens = answers.shape
    found, weights = np.full((2, num_tokens), 0.5), np.zeros(num_tokens)
    total = answers.sum(axis=1).max(axis=0)  # (T,)
    moved = total > 1e-6 * total.max(initial=0)
    answering = np.flatnonzero(total > ANSWERS * np.median(total[moved])) if moved.any() else np.flatnonzero(moved)
    if not len(answering):
        return found, weights
    sure = np.ones(len(answering))
    for axis, side in enumerate(size):
        edges = np.array(strip_edges(side, strips)) / side
        place, contrast = _peaks(answers[axis][:, answering].T, (edges[1:] + edges[:-1]) / 2)
        found[axis, answering] = place
        sure = np.minimum(sure, contrast)
    weights[answering] = np.clip((sure - CHANCE) / (CLEAR - CHANCE), 0, 1)
    return found, weights


def _peaks(answers: Floats, centres: Floats) -> tuple[Floats, Floats]:
    """Give the place of the peak of each token's answers (T, S), and how far these exceed chance there.  # (T,) each"""
    common = np.median(answers, axis=0)
    share = np.median(answers / common, axis=1, keepdims=True) if (common > 0).all() else 0.0
    own = np.maximum(answers - common * share, 0)
    peak = own.argmax(axis=1)
    above = own > FLANK * own.max(axis=1, keepdims=True)  # (T, S)
    strip = np.arange(len(centres))
    near = np.zeros_like(above)
    for token, top in enumerate(peak):
        below = ~above[token]
        first = strip[below & (strip < top)].max(initial=-1)
        last = strip[below & (strip > top)].min(initial=len(strip))
        near[token, first + 1 : last] = True
    near[np.arange(len(peak)), peak] = True
    width = near.mean(axis=1)
    share = (answers * near).sum(axis=1) / answers.sum(axis=1)
    contrast = (share - width) / np.maximum(1 - width, 1 / len(centres))
    weights = np.where(own.max(axis=1, keepdims=True) > 0, own, 1) * near
    return (weights @ centres) / weights.sum(axis=1), contrast
