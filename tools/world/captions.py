"""How well captions of scenes name the objects that are in plain sight."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from innervision.world.scenes import COLOURS, SHAPES, SceneObject

_PAIR = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")
_COLOUR = re.compile(rf"\b({'|'.join(COLOURS)})\b")


@dataclass(frozen=True)
class Naming:
    """Shares from 0 to 1 over all objects, or all mentions, of the scenes together.

    An object should be named if `SceneObject.named`. Its colour is named if the caption holds the colour's word
    (no two objects of a scene share a colour), its shape if the caption holds colour and shape side by side, as
    in "red cube". A caption's colours, and its pairs of colour and shape, are counted once each; they are true
    if an object that is to be seen at all has them.
    """

    colour_recall: float
    shape_recall: float
    colour_precision: float
    shape_precision: float
    objects: int


def naming(captions: Sequence[str], objects: Sequence[Sequence[SceneObject]]) -> Naming:
    """Score one caption for each scene, given all of the scene's objects. A share of nothing counts as 0."""
    hits, tries = [0] * 4, [0] * 4
    for caption, present in zip(captions, objects, strict=True):
        said: list[set[str]] = [set(_COLOUR.findall(caption)), {" ".join(pair) for pair in _PAIR.findall(caption)}]
        for k, phrase in enumerate((_colour, _pair)):
            wanted = [phrase(item) for item in present if item.named]
            true = {phrase(item) for item in present if item.segment_id}
            hits[k] += sum(words in said[k] for words in wanted)
            tries[k] += len(wanted)
            hits[2 + k] += len(said[k] & true)
            tries[2 + k] += len(said[k])
    shares = [hit / max(1, tried) for hit, tried in zip(hits, tries, strict=True)]
    return Naming(shares[0], shares[1], shares[2], shares[3], objects=tries[0])


def _colour(item: SceneObject) -> str:
    return item.colour


def _pair(item: SceneObject) -> str:
    return f"{item.colour} {item.shape}"
