"""Places that are found by experiment, against positions worked out by hand from each family's processor."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import places_by_hand as by_hand
from innervision.config import VISION
from innervision.errors import InnerVisionError
from innervision.mllm import MLLM, Inputs
from innervision.mllm.places import PlaceFinder
from innervision.mllm.strips import changed_images
from innervision.original.protocol import PROTOCOLS
from tiny_mllms import save_tiny

Load = Callable[[str], MLLM]
SIZES = [(160, 240), (300, 200), (90, 250), (240, 240)]
STRIP = 1 / 8


def finder(mllm: MLLM) -> PlaceFinder:
    return PlaceFinder(mllm, partial(mllm.builder, prompt="Describe."))


def find(mllm: MLLM, size: tuple[int, int], layer: int = 0) -> NDArray[np.float64]:
    """Places of the image tokens of one image; all tokens' in layer -1."""
    inputs = mllm.prepare([Image.new("RGB", size[::-1])], "Describe.")
    places = finder(mllm).find(inputs, [layer])[layer][0]
    if layer == 0:
        assert places[~inputs.image_mask[0]].isnan().all()
        places = places[inputs.image_mask[0]]
    return places.double().numpy()


def compare(found: NDArray[np.float64], expected: by_hand.Places) -> None:
    """To within half a strip; and a token's size to within a third of it."""
    assert len(found) == len(expected)
    wanted = np.array([[np.nan] * 4 if place is None else place for place in expected])
    nowhere = np.isnan(wanted).all(axis=1)
    assert np.isnan(found[nowhere]).all()
    assert np.isfinite(found[~nowhere]).all()
    error = np.abs(found - wanted)[~nowhere]
    assert (error[:, :2] < STRIP / 2).all()
    assert (error[:, 2:] < wanted[~nowhere, 2:] / 3).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", sorted(by_hand.PLACES.keys() - {"lfm2_vl"}))
def test_places_are_those_of_the_processor(family: str, size: tuple[int, int], load_family: Load) -> None:
    compare(find(load_family(family), size), by_hand.PLACES[family](*size))


@pytest.mark.parametrize("size", SIZES)
def test_tiles_of_lfm2_vl_are_found(size: tuple[int, int], load_family: Load) -> None:
    """Its thumbnail of 2 × 3 tokens, which all see everything in this random tower, is not always."""
    found, expected = find(load_family("lfm2_vl"), size), by_hand.PLACES["lfm2_vl"](*size)
    tiles = len(expected) // 9 * 9
    if size != (240, 240):
        thumbnail = len(expected) - tiles or 9
        tiles = len(expected) - thumbnail
    compare(found[:tiles], expected[:tiles])


@pytest.mark.parametrize("size", SIZES[:3])
@pytest.mark.parametrize(
    ("family", "places"),
    [
        ("llava", by_hand.llava),
        ("qwen2_vl", by_hand.qwen_patches),
        ("qwen2_5_vl", by_hand.qwen_windows),
        ("qwen3_vl", by_hand.qwen_patches),
        ("glm4v", by_hand.qwen),
        ("gemma3", by_hand.squash(8, 8)),
        ("paligemma", by_hand.squash(4, 4)),
        ("aya_vision", by_hand.tiles_and_thumbnail(56, 8)),
        ("internvl", by_hand.PLACES["internvl"]),
        ("ovis2", by_hand.ovis2),
        ("blip-2", lambda height, width: [None, *by_hand.grid(4, 4)]),
    ],
)
def test_places_in_the_vision_stage(
    family: str, places: Callable[[int, int], by_hand.Places], size: tuple[int, int], load_family: Load
) -> None:
    compare(find(load_family(family), size, VISION), places(*size))


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "internvl", "mistral3", "ovis2"])
def test_random_towers_have_places_too(family: str, tmp_path: Path) -> None:
    mllm = MLLM.load(str(save_tiny(family, tmp_path, seed=3)), device="cpu")
    compare(find(mllm, (160, 240)), by_hand.PLACES[family](160, 240))


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl", "smolvlm"])
def test_places_do_not_depend_on_the_batch_or_the_order_of_sizes(family: str, load_family: Load) -> None:
    mllm = load_family(family)
    alone = {size: find(mllm, size) for size in SIZES}
    for order in (SIZES, SIZES[::-1]):
        inputs = mllm.prepare([Image.new("RGB", size[::-1]) for size in order], "Describe.")
        places = finder(mllm).find(inputs, [0, 2])
        assert places.keys() == {0}
        for size, found, shown in zip(order, places[0], inputs.image_mask, strict=True):
            np.testing.assert_array_equal(found[shown].numpy(), alone[size].astype(np.float32))


def test_arguments_that_are_lists_change_nothing(load_family: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some processors count the tiles of each image in a list of numbers, which the model takes."""
    mllm = load_family("llava")
    expected, forward = find(mllm, (90, 120)), mllm.model.forward

    def prepare(images: list[Image.Image]) -> Inputs:
        inputs = mllm.prepare(images, "Describe.")
        return replace(inputs, tensors=inputs.tensors | {"num_tiles": [1] * len(images)})

    monkeypatch.setattr(mllm.model, "forward", lambda num_tiles, **tensors: forward(**tensors))
    inputs = prepare([Image.new("RGB", (120, 90))])
    found = PlaceFinder(mllm, prepare).find(inputs, [0])[0][inputs.image_mask]
    assert np.array_equal(found.double().numpy(), expected)


def test_sizes_share_experiments(load_family: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaVA crops all images to one square: one experiment, of 4 base images and 8 + 8 strips, is enough."""
    mllm, passes = load_family("llava"), []
    visit = MLLM.visit

    def counting(self: MLLM, inputs: Inputs, *rest: Any) -> None:
        passes.append(len(inputs.mask))
        visit(self, inputs, *rest)

    monkeypatch.setattr(MLLM, "visit", counting)
    inputs = mllm.prepare([Image.new("RGB", (60 + 7 * i, 90)) for i in range(12)], "Describe.")
    finder(mllm).find(inputs, [0])
    assert sum(passes) == 4 * (1 + 8 + 8)


@pytest.mark.parametrize("size", [(160, 240), (240, 160), (90, 250)])
def test_protocol_paper_pads_and_places_are_of_the_original(size: tuple[int, int], load_family: Load) -> None:
    mllm = load_family("llava")
    prepare = PROTOCOLS["paper"].inputs(mllm.builder, "Describe.", "train")
    inputs = prepare([Image.new("RGB", size[::-1])])
    assert inputs.sizes.tolist() == [[*size]]
    long = max(size)
    (top, bottom), (left, right) = (((1 - long / side) / 2, (1 + long / side) / 2) for side in size)
    found = PlaceFinder(mllm, prepare).find(inputs, [0])[0][0][inputs.image_mask[0]]
    compare(found.double().numpy(), by_hand.grid(4, 4, (top, left, bottom, right)))


def test_the_shipped_model_crops(load_family: Load) -> None:
    mllm = MLLM.load("world/tuned", device="cpu")
    for height, width in ((112, 112), (112, 224)):
        found = find(mllm, (height, width))
        side = round(len(found) ** 0.5)
        expected = by_hand.grid(side, side, (0, 0.5 - height / width / 2, 1, 0.5 + height / width / 2))
        compare(found, expected)


def test_other_tokens_in_a_batch_are_an_error(load_family: Load) -> None:
    mllm = load_family("llava")
    inputs = mllm.prepare([Image.new("RGB", (60, 40))], "Describe. What is this?")
    with pytest.raises(InnerVisionError, match=r"in a batch and .* alone"):
        finder(mllm).find(inputs, [0])


def test_one_strip_at_a_time_is_changed() -> None:
    base, *changed = (np.asarray(image) for image in changed_images((10, 20), 5, 0))
    different = [(image != base).any(axis=2) for image in changed]
    assert len(different) == 10
    assert all(
        np.array_equal(np.flatnonzero(each.all(axis=1)), [2 * i, 2 * i + 1]) for i, each in enumerate(different[:5])
    )
    columns: list[Tensor] = [torch.from_numpy(each.all(axis=0)) for each in different[5:]]
    assert torch.equal(torch.stack(columns).sum(0), torch.ones(20))
