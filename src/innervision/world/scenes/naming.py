"""What a scene shows, in segments and in words."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from innervision.world.scenes.composing import Setting
from innervision.world.scenes.dice import Dice
from innervision.world.scenes.scene import CATEGORIES, SceneObject, Segment
from innervision.world.scenes.tracing import FIRST_OBJECT, FIRST_WALL, GROUND, SKY, View


def relations(a: SceneObject, b: SceneObject, size: int = 112) -> list[str]:
    """The relations "a is … b" that are true and clear to see.

    Left and right go by the centres in the image (8% of its width apart), front and behind by the depth of
    the centres (12% apart), above and below by the height of one centre over the other's top, where the image
    shows it higher too. Where nothing is clear, left or right decides, however near.
    """
    found = []
    aside = b.pixel[1] - a.pixel[1]
    if abs(aside) > 0.08 * size:
        found.append("left of" if aside > 0 else "right of")
    if max(a.depth, b.depth) > 1.12 * min(a.depth, b.depth):
        found.append("in front of" if a.depth < b.depth else "behind")
    higher = a.position[1] - b.position[1]
    top = b.half_height if higher > 0 else a.half_height
    if abs(higher) > top and higher * (b.pixel[0] - a.pixel[0]) > 0:
        found.append("above" if higher > 0 else "below")
    return found or ["left of" if aside > 0 else "right of"]


_CATEGORY_ID = {category["name"]: category["id"] for category in CATEGORIES}


def find_segments(
    view: View, setting: Setting, objects: list[SceneObject]
) -> tuple[NDArray[np.int32], list[Segment], list[SceneObject]]:
    """Number the regions from 1, the objects in their order first, then the stuff."""
    owner = view.owner[0]
    ground = "floor" if setting.place == "indoor" else "grass"
    regions = [(item.shape, owner == FIRST_OBJECT + number) for number, item in enumerate(objects)]
    walls = (owner >= FIRST_WALL) & (owner < FIRST_OBJECT)
    regions += [(ground, owner == GROUND), ("wall", walls), ("sky", owner == SKY)]
    panoptic = np.zeros(owner.shape, np.int32)
    segments: list[Segment] = []
    seen = []
    for number, (name, here) in enumerate(regions):
        area = int(np.count_nonzero(here))
        thing = number < len(objects)
        identity = len(segments) + 1 if area else 0
        if thing:
            share = area / max(view.outlines[number], 1)
            seen.append(replace(objects[number], visibility=share, area=area, segment_id=identity))
        if area:
            panoptic[here] = identity
            rows, columns = np.flatnonzero(here.any(1)), np.flatnonzero(here.any(0))
            left, top = int(columns[0]), int(rows[0])
            box = (left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1)
            segments.append(Segment(identity, _CATEGORY_ID[name], thing, area, box))
    return panoptic, segments, seen


def write_captions(dice: Dice, objects: list[SceneObject], setting: Setting, size: int) -> list[str]:
    """Five sentences that name every object in plain sight, the largest in the image first.

    The relation is always between the first two that are named, so that both are known before it comes; all
    but the first sentence draw these two anew.
    """
    named = sorted((item for item in objects if item.named), key=lambda item: -item.area)
    ground, place = ("floor", "room") if setting.place == "indoor" else ("grass", "meadow")
    captions = []
    for variant in range(5):
        order = named
        if variant and len(named) > 1:
            first, second = dice.shuffled(named)[:2]
            order = [first, second, *(item for item in named if item is not first and item is not second)]
        listing = _listing(order, variant)
        if variant == 1:
            listing = f"there {'is' if len(order) == 1 else 'are'} {listing}"
        elif variant == 2:
            listing = f"a {place} with {listing}"
        captions.append(f"{listing}; {_clause(dice, order, ground, size)}.")
    return captions


def _listing(order: list[SceneObject], variant: int) -> str:
    """Name the objects like "a red cube and an orange ring"; the last variants add textures or sizes."""
    phrases = []
    for item in order:
        words = [item.colour, item.shape]
        if variant == 3 and item.texture != "plain":
            words.insert(0, item.texture)
        elif variant == 4:
            words.insert(0, item.size)
        phrases.append(" ".join(["an" if words[0][0] in "aeiou" else "a", *words]))
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _clause(dice: Dice, order: list[SceneObject], ground: str, size: int) -> str:
    subject = f"the {order[0].colour} {order[0].shape}"
    if len(order) == 1:
        return f"{subject} {'floats above' if order[0].floating else 'is on'} the {ground}"
    relation = dice.pick(relations(order[0], order[1], size))
    return f"{subject} is {relation} the {order[1].colour} {order[1].shape}"
