"""Places that were found token by token, explained by lattices: no model, and positions known by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray

import places_by_hand as by_hand
from innervision.mllm.places import place_on_tiles


def explain(places: by_hand.Places, strips: int, *, snapped: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give what is made of these places, and them; snapped to strips where a token answers to a single one."""
    wanted = np.array(places, dtype=float)
    found = wanted[:, :2].T
    if snapped:
        found = (np.floor(found * strips) + 0.5) / strips
    return place_on_tiles(found, np.ones(len(wanted)), 1 / strips), wanted


def windows(rows: int, columns: int, side: int) -> by_hand.Places:
    """Patches of a grid in windows of side × side, in each of which squares of 2 × 2 follow each other."""
    grid = by_hand.grid(rows, columns)
    return [
        grid[(top + y) * columns + left + x]
        for window_row in range(0, rows, side)
        for window_column in range(0, columns, side)
        for top in range(window_row, min(window_row + side, rows), 2)
        for left in range(window_column, min(window_column + side, columns), 2)
        for y in range(2)
        for x in range(2)
    ]


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (18, 16), (16, 20), (22, 26), (30, 18)])
@pytest.mark.parametrize("snapped", [False, True])
def test_windows_and_what_is_left_of_them_at_the_border(rows: int, columns: int, snapped: bool) -> None:
    found, wanted = explain(windows(rows, columns, 8), 20, snapped=snapped)
    assert np.isfinite(found).all()
    assert (np.abs(found - wanted)[:, :2] < 0.5 / 20).all()
    assert (np.abs(found - wanted)[:, 2:] < wanted[:, 2:] / 3).all()


@pytest.mark.parametrize("lines_in_a_strip", [2, 3])
@pytest.mark.parametrize("tiles", [(1, 1), (2, 2), (1, 3)])
def test_first_lines_within_one_strip_are_not_lost(tiles: tuple[int, int], lines_in_a_strip: int) -> None:
    per_tile = 12
    strips = max(tiles) * per_tile // lines_in_a_strip
    found, wanted = explain(by_hand.tiled(*tiles, per_tile), strips, snapped=True)
    assert np.isfinite(found).all()
    assert (np.abs(found - wanted)[:, :2] < 0.5 / strips).all()


def test_one_token_that_is_off_is_outvoted_and_a_line_that_is_off_is_not() -> None:
    wanted = np.array(by_hand.grid(8, 8), dtype=float)
    found = wanted[:, :2].T.copy()
    found[1, 27] += 0.4
    np.testing.assert_allclose(place_on_tiles(found, np.ones(64), 1 / 8), wanted, atol=0.02)
    found = wanted[:, :2].T.copy()
    found[1, 24:32] += 0.4
    places = place_on_tiles(found, np.ones(64), 1 / 8)
    assert not np.isclose(places[24:32, :2], wanted[24:32, :2]).any()
    np.testing.assert_allclose(places[:24], wanted[:24], atol=0.02)
