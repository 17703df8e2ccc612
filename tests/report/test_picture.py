"""The colours of the picture of layers, and where they stand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from innervision.engine.decode import Decoded
from innervision.report.picture import _paint, draw_layers

CLASSES = [("cup", (10, 200, 30)), ("sky", (40, 50, 220)), ("sea", (250, 120, 0))]
COLORS = np.array([color for _, color in CLASSES]) / 255


def test_classes_have_their_colours_and_unknown_ones_are_white() -> None:
    np.testing.assert_allclose(_paint("seg", np.array([[0, 2], [1, 255]]), COLORS)[1], [COLORS[1], [1, 1, 1]])


def test_depth_maps_are_on_the_scale_that_is_given() -> None:
    low, high = (_paint("depth", np.full((1, 1), value), COLORS, (0.0, 10.0)) for value in (0.0, 10.0))
    flat = _paint("depth", np.array([[5.0, 5.1]]), COLORS, (0.0, 10.0))
    assert np.abs(np.diff(flat, axis=1)).max() < 0.03  # a map that says little looks flat
    assert low.sum() < flat[0, 0].sum() < high.sum()
    np.testing.assert_allclose(_paint("depth", np.full((1, 1), 99.0), COLORS, (0.0, 10.0)), high)


def test_the_closest_point_is_brightest_whatever_the_scale() -> None:
    depth = np.array([[1.0, 2.0], [3.0, 5.0]])
    painted = _paint("depth", depth, COLORS)
    assert painted.sum(-1).argmax() == 3
    assert painted.sum(-1).argmin() == 0
    np.testing.assert_allclose(_paint("depth", 7 * depth - 3, COLORS), painted)
    assert np.isfinite(_paint("depth", np.ones((2, 2)), COLORS)).all()


@pytest.fixture
def picture(tmp_path: Path) -> np.ndarray:
    """Two runs with three layers; in seg each layer shows another class, in gen each run another grey."""

    def decoded(grey: float) -> dict[str, Decoded]:
        maps = [torch.nn.functional.one_hot(torch.full((4, 4), k), 3).movedim(-1, 0).float() for k in range(3)]
        image = torch.full((3, 4, 4), grey)
        return {
            "seg": Decoded("seg", dict(zip((-1, 0, 5), maps, strict=True)), maps[1], maps[2]),
            "gen": Decoded("gen", dict.fromkeys((-1, 0, 5), image), image, image),
        }

    truth = {"seg": np.zeros((4, 4), np.uint8), "gen": np.broadcast_to([1.0, 0.0, 1.0], (4, 4, 3))}
    draw_layers({"a": decoded(0.25), "b": decoded(0.75)}, truth, tmp_path / "layers.png", CLASSES)
    return np.asarray(Image.open(tmp_path / "layers.png").convert("RGB"))


def test_the_truth_of_depth_stands_beside_the_photograph_on_the_experts_scale(tmp_path: Path) -> None:
    """The expert says 0 and 100, the layer 0 everywhere; the truth is farther on the left, and unknown below."""
    expert = torch.tensor([[0.0, 100.0], [0.0, 100.0]])
    decoded = {"depth": Decoded("depth", {1: torch.zeros(2, 2)}, expert, None)}
    depth = np.array([[9.0, 2.0], [np.nan, np.nan]])
    photograph = np.broadcast_to([1.0, 0.0, 1.0], (2, 2, 3))
    draw_layers({"a": decoded}, {"depth": photograph}, tmp_path / "a.png", depth=depth)
    found = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    (image,) = centre(found, (255, 0, 255))
    dark, bright = (
        tuple(round(255 * each) for each in _paint("depth", np.full((1, 1), v), COLORS, (0, 100))[0, 0])
        for v in (0.0, 100.0)
    )
    closest, farthest, unknown = centre(found, bright), centre(found, dark), centre(found, (128, 128, 128))
    assert len(closest) == 2  # of the truth, in one pixel, and of the expert
    assert len(unknown) == 1
    assert image[1] < farthest[0][1] < closest[0][1] < farthest[1][1] < closest[1][1]
    assert farthest[0][1] < unknown[0][1] < closest[0][1]
    assert unknown[0][0] > closest[0][0]


def centre(picture: np.ndarray, color: tuple[int, int, int]) -> list[tuple[float, float]]:
    """Row and column of the middle of each area of this colour, as shares of the picture, from left to right."""
    from scipy import ndimage

    areas, count = ndimage.label((np.abs(picture.astype(int) - color) <= 2).all(-1))
    large = [number for number in range(1, count + 1) if (areas == number).sum() > 1000]
    middles = ndimage.center_of_mass(areas > 0, areas, large)
    return sorted(((row / len(picture), column / picture.shape[1]) for row, column in middles), key=lambda at: at[1])


def test_truth_expert_layers_and_floor_stand_side_by_side(picture: np.ndarray) -> None:
    (cup, *cups), (expert, *skies), seas = (centre(picture, color) for _, color in CLASSES)
    assert [len(cups), len(skies), len(seas)] == [2, 2, 3]  # of both runs; the floor is one
    assert cup[1] < expert[1] < cups[0][1] < skies[0][1] < seas[0][1] < seas[-1][1]
    assert cups[0][0] != pytest.approx(cups[1][0], abs=0.05)
    (image,) = centre(picture, (255, 0, 255))
    assert image[0] > cup[0]
    assert image[1] == pytest.approx(cup[1], abs=0.01)
    assert len(centre(picture, (64, 64, 64))) == 3 + 2  # first run: layers, and expert and mean
    assert len(centre(picture, (191, 191, 191))) == 3


def test_the_legend_has_every_class_that_is_shown_and_not_those_of_the_truth_alone(picture: np.ndarray) -> None:
    below = picture[int(0.92 * len(picture)) :].astype(int)
    for _, color in CLASSES:
        assert (np.abs(below - color) <= 2).all(-1).any()


def test_names_of_classes_and_targets_are_written_as_they_are(tmp_path: Path) -> None:
    name = "$\\frac{ \x1b"  # a formula that is wrong would fail
    maps = torch.eye(3)[:, :, None].expand(3, 3, 4)
    decoded = {name: Decoded("seg", {0: maps}, maps, maps)}
    truth = {name: np.zeros((3, 4), np.uint8)}
    draw_layers({name: decoded}, truth, tmp_path / "layers.png", [(name, color) for _, color in CLASSES])
    assert (tmp_path / "layers.png").exists()
