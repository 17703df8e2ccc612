"""Scoring captions against the objects of a scene."""

from dataclasses import replace

import pytest
from tools.world.captions import naming

from innervision.world.scenes import SceneObject, render

SEEN = replace(render(0, 1).objects[0], visibility=1.0, segment_id=1)


def item(colour: str, shape: str, **rest: float) -> SceneObject:
    return replace(SEEN, colour=colour, shape=shape, **rest)  # mypy: one type for all


SCENE = [item("red", "cube"), item("blue", "ring"), item("green", "cone", visibility=0.2), item("black", "cross")]


def test_the_scenes_own_captions_are_right() -> None:
    scenes = [render(0, 500_000_001 + i) for i in range(30)]
    for variant in range(5):
        score = naming([scene.captions[variant] for scene in scenes], [scene.objects for scene in scenes])
        assert score.objects == sum(item.named for scene in scenes for item in scene.objects)
        assert (score.colour_recall, score.shape_recall, score.colour_precision, score.shape_precision) == (1, 1, 1, 1)


def test_shares_by_hand() -> None:
    # Red and blue are named, blue with the wrong shape; black is not; green is true though it need not be named;
    # yellow is not there. What is named twice counts once.
    caption = "a red cube, a blue cube, a green cone and a yellow ring; the red cube is left of the blue cube."
    score = naming([caption], [SCENE])
    assert score.objects == 3
    assert score.colour_recall == pytest.approx(2 / 3)
    assert score.shape_recall == pytest.approx(1 / 3)
    assert score.colour_precision == pytest.approx(3 / 4)
    assert score.shape_precision == pytest.approx(2 / 4)


def test_words_that_do_not_stand_side_by_side_name_no_pair() -> None:
    score = naming(["red ring blue; cube, blueish ring"], [SCENE])
    assert (score.colour_recall, score.shape_recall) == (pytest.approx(2 / 3), 0)


def test_silence_scores_nothing() -> None:
    score = naming(["", "there"], [SCENE, SCENE])
    assert (score.colour_recall, score.shape_recall, score.colour_precision, score.shape_precision) == (0, 0, 0, 0)
