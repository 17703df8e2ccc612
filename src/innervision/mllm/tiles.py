"""Tiles: stretches of a sequence whose tokens stand on a lattice, line after line.

Processors cut, pad and order images in many ways, but what comes out is always a row of tiles, each read in raster
order. So places that were found one by one, with some error, are explained by as few lattices as will do.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

BLOCKS = (1, 2)
"""Tokens come one by one, or in squares of 2 × 2: how towers order the patches that a projector merges."""
LINE_ENDS = (0, 1)
"""Tokens without a place that may stand between two lines."""
ALWAYS_TRIED = 32
"""Periods up to this one are tried; of longer ones those after which columns come back."""
LONGER = 16
"""How many of these."""
COST = 3.0
"""How many well-explained tokens a tile must have before it counts."""
MISSING = 0.1
"""What a token on the lattice that was found nowhere takes off."""


@dataclass(frozen=True)
class Order:
    """How the tokens of a tile follow each other: in lines of blocks, each of block × block tokens."""

    block: int
    blocks: int
    """In a line."""
    line_end: int
    """Tokens without a place between two lines."""

    @property
    def length(self) -> int:
        """Tokens of a line that have a place."""
        return self.block**2 * self.blocks

    @property
    def period(self) -> int:
        """Tokens from one line to the next."""
        return self.length + self.line_end

    def line(self) -> tuple[Indices, Indices]:
        """Give row and column of each token of the first line."""
        block, inside = np.divmod(np.arange(self.length), self.block**2)
        return inside // self.block, block * self.block + inside % self.block


@dataclass(frozen=True)
class Tile:
    """A stretch of tokens on a lattice."""

    start: int
    """Its first token."""
    order: Order
    lines: int

    @property
    def stop(self) -> int:
        """The token after its last."""
        return self.start + self.lines * self.order.period - self.order.line_end

    def tokens(self) -> tuple[Indices, Indices]:
        """Give its tokens (n,), and the rows and columns (2, n) of the lattice that they stand on."""
        line = np.arange(self.lines)[:, None]
        row, column = self.order.line()
        index = self.start + line * self.order.period + np.arange(self.order.length)
        lattice = np.broadcast_arrays(line * self.order.block + row, column)
        return index.ravel(), np.stack([axis.ravel() for axis in lattice])


def find_tiles(found: Floats, weights: Floats, tolerance: float) -> list[Tile]:
    """Divide a sequence into tiles and tokens that belong to none, so that lattices explain as much as they can.

    A tile is worth Σ w (1 - e² / 2t²) over its tokens, where w is a token's weight, e the distance of its found place
    from the best lattice and t the tolerance, less `COST` and `MISSING`. The division worth most is found by dynamic
    programming.

    Args:
        found: (2, T), row and column of each token as it was found; anything where its weight is 0.
        weights: (T,), from 0 to 1: how much a token counts.
        tolerance: how far off a place may be found, in the unit of `found`.

    Returns:
        The tiles, from first to last.
    """
    length = len(weights)
    found = np.where(weights > 0, found, 0.0)
    found[0] = _outvoted(found[0], weights, 1)  # neighbours in a line have the same row
    orders = [*_orders(found, weights, tolerance)]
    worths, lines = np.full((len(orders), length), -np.inf), np.zeros((len(orders), length), dtype=np.int64)
    for i, order in enumerate(orders):
        _measure(found, weights, tolerance, order, worths[i], lines[i])
    periods = np.array([order.period for order in orders], dtype=np.int64)
    ends = np.array([order.line_end for order in orders], dtype=np.int64)
    best = np.zeros(length + 1)
    chosen: dict[int, Tile] = {}
    for start in range(length - 1, -1, -1):
        best[start] = best[start + 1]
        stops = np.minimum(start + lines[:, start] * periods - ends, length)
        totals = worths[:, start] + best[stops]
        if len(orders) and totals[i := int(totals.argmax())] > best[start]:
            best[start] = totals[i]
            chosen[start] = Tile(start, orders[i], int(lines[i, start]))
    tiles, start = [], 0
    while start < length:
        tile = chosen.get(start)
        if tile is not None:
            tiles.append(tile)
        start = start + 1 if tile is None else tile.stop
    return tiles


def _orders(found: Floats, weights: Floats, tolerance: float) -> Iterator[Order]:
    """Give the orders that a tile of this sequence may have."""
    periods = {*range(1, min(ALWAYS_TRIED, len(weights)) + 1), *_runs(weights)}
    returns = [
        float(
            (
                weights[period:]
                * weights[:-period]
                * np.clip(1 - ((found[1, period:] - found[1, :-period]) / (2 * tolerance)) ** 2, 0, None)
            ).sum()
        )
        for period in range(ALWAYS_TRIED + 1, len(weights) // 2 + 1)
    ]
    periods |= {ALWAYS_TRIED + 1 + int(i) for i in np.argsort(returns)[::-1][:LONGER]}
    for period in sorted(periods):
        for line_end in LINE_ENDS:
            for block in BLOCKS:
                blocks, rest = divmod(period - line_end, block**2)
                if blocks > 0 and rest == 0:
                    yield Order(block, blocks, line_end)


def _runs(weights: Floats) -> set[int]:
    """Give the lengths of the longest stretches of tokens that were found: images of one line have no period."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], weights > 0, [0]])))
    lengths: Indices = np.diff(edges)[::2]
    return {int(length) for length in np.unique(lengths)[::-1][:LONGER]}


def _measure(found: Floats, weights: Floats, tolerance: float, order: Order, worth: Floats, lines: Indices) -> None:
    """Write, for each token, what the best tile of this order that starts there is worth, and how many lines it has."""
    length = order.length
    starts = np.arange(len(weights) - length + 1)
    if not len(starts):
        return
    r, c = found[0], _outvoted(found[1], weights, order.period)  # neighbours in a column have the same column
    row, column = order.line()

    def of_lines(values: Floats, *factors: Indices) -> list[Floats]:
        windows = np.lib.stride_tricks.sliding_window_view(values, length)
        return [windows.sum(1), *(windows @ factor for factor in factors)]

    w, wi, wii, wj, wjj = of_lines(weights, row, row**2, column, column**2)
    (wr, wir), (wc, wjc) = of_lines(weights * r, row), of_lines(weights * c, column)
    (wrr,), (wcc,) = of_lines(weights * r**2), of_lines(weights * c**2)
    (missing,) = of_lines((weights == 0).astype(float))
    of_line = np.stack([w, wi, wii, wj, wjj, wr, wir, wc, wjc, wrr, wcc, missing])  # (12, starts)
    sums = np.zeros_like(of_line)
    for count in range(1, len(weights) // order.period + 2):
        first = starts + (count - 1) * order.period
        if not (inside := first < of_line.shape[1]).any():
            return
        starts, first, sums = starts[inside], first[inside], sums[:, inside]
        up = order.block * (count - 1)
        more = of_line[:, first]
        more[2] += 2 * up * more[1] + up**2 * more[0]
        more[1] += up * more[0]
        more[6] += up * more[5]
        sums = sums + more
        w, wi, wii, wj, wjj, wr, wir, wc, wjc, wrr, wcc, missing = sums
        of_rows, rows_rise = _unexplained(w, wi, wii, wr, wir, wrr, tolerance)
        of_columns, columns_rise = _unexplained(w, wj, wjj, wc, wjc, wcc, tolerance)
        value = w - (of_rows + of_columns) / (2 * tolerance**2) - MISSING * missing - COST
        if count == 1:  # one line is a tile only if it stands alone
            alone = np.concatenate([[True], weights == 0, [True]])
            value = np.where(alone[starts] & alone[starts + length + 1] | (order.block > 1), value, -np.inf)
        better = (value > worth[starts]) & rows_rise & columns_rise  # narrow lines may rise later: two within a strip
        worth[starts[better]] = value[better]
        lines[starts[better]] = count
        going_on = (count == 1) | (value > np.maximum(worth[starts], -COST) - 2 * COST - MISSING * length)
        starts, sums = starts[going_on], sums[:, going_on]


def _outvoted(values: Floats, weights: Floats, step: int) -> Floats:
    """Correct what single tokens are off the median of themselves and those `step` before and after.

    Only where all three were found, and only as far as the tokens right before and after are not off alike: then a
    whole line stands elsewhere.
    """
    off = values - _median_of_three(values, weights > 0, step)
    return values - (off - _median_of_three(off, weights > 0, 1))


def _median_of_three(values: Floats, known: NDArray[np.bool_], step: int) -> Floats:
    """Give the median of each value and those `step` before and after, or the value where not all three are known."""
    medians = values.copy()
    if len(values) > 2 * step:
        all_three = known[: -2 * step] & known[step:-step] & known[2 * step :]
        median = np.median([values[: -2 * step], values[step:-step], values[2 * step :]], axis=0)
        medians[step:-step] = np.where(all_three, median, values[step:-step])
    return medians


def _unexplained(
    w: Floats, x: Floats, xx: Floats, y: Floats, xy: Floats, yy: Floats, tolerance: float
) -> tuple[Floats, NDArray[np.bool_]]:
    """Give the weighted squares that a straight line leaves of y, and whether it rises as a lattice does."""
    with np.errstate(divide="ignore", invalid="ignore"):
        spread, along, total = xx - x * x / w, xy - x * y / w, yy - y * y / w
        flat = spread < 1e-9 * np.maximum(xx, 1)
        rest = np.where(flat, total, total - along**2 / spread)
        rises = flat | (along > spread * tolerance / 4) | (w <= 0)
    return np.where(w > 0, np.maximum(rest, 0), 0.0), rises
