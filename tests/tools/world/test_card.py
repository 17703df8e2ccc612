"""The card of the models that ship: measured on these weights, which cannot change, with what is claimed of them."""

import json

import pytest

from innervision.checkpoints.identity import MODELS, fingerprint
from innervision.world.scenes import SHAPES

CARD = {entry["model"]: entry for entry in json.loads((MODELS / "card.json").read_text())}


@pytest.mark.parametrize("model", CARD)
def test_the_card_was_measured_on_the_weights_that_ship(model: str) -> None:
    assert CARD[model]["fingerprint"] == fingerprint(MODELS / model)


def test_every_model_that_ships_is_on_the_card() -> None:
    assert CARD.keys() == {folder.name for folder in MODELS.iterdir() if folder.is_dir()}


def figures(model: str) -> list[float]:
    return [figure["value"] for figure in CARD[model]["figures"]]


def baselines(model: str) -> list[float]:
    """Of the first two figures: what is seen, and what is left of it when a prediction is decoded."""
    return [value for figure in CARD[model]["figures"][:2] for value in figure["baselines"].values()]


def test_the_depth_expert_orders_pairs_that_the_place_does_not() -> None:
    assert min(figures("depth")) > 85
    assert max(baselines("depth")) < 70


def test_the_segmentation_expert_knows_every_shape() -> None:
    scores = {figure["what"]: figure["value"] for figure in CARD["seg"]["figures"]}
    assert scores["mIoU"] > 65
    assert min(scores[f"IoU of {shape}"] for shape in SHAPES) > 40
    assert max(baselines("seg")) < 15  # without the last stage it is blind


def test_variations_are_nearer_to_their_own_scene_than_to_others() -> None:
    distance, own, explained = CARD["gen"]["figures"]
    assert distance["baselines"]["real scenes"] < distance["value"] < distance["baselines"]["random embeddings"] / 2
    assert own["value"] > 90
    assert explained["value"] > 50


def test_captions_grow_with_training_to_name_colours_and_shapes() -> None:
    untrained, early, tuned = (figures(name) for name in ("untrained", "early", "tuned"))
    stranger = CARD["tuned"]["figures"][1]["baselines"]["true caption of another scene"]
    assert min(tuned) > 75
    assert tuned[1] > early[1] + 10 > stranger + 20
    assert untrained[1] <= stranger


def test_distilling_leaves_the_captions_as_they_are() -> None:
    assert all(abs(a - b) < 2 for a, b in zip(figures("distilled"), figures("tuned"), strict=True))
