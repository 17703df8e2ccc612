"""What a layer's states say at each cell of a target's feature map."""

import math
from contextlib import nullcontext

import torch
from torch import Tensor

from innervision.errors import InnerVisionError

EDGE = 0.6
"""How far from a token's centre a cell's centre may lie to count as seen, in sizes of the token: half of it is the
token's own edge, and the rest allows for places that are known to a tenth of a token."""

FINER = 1.5
"""Tokens are of another scale where their areas differ by more than this factor."""


def grid_side(num_cells: int) -> int:
    """Give the number of rows, and of columns, of a square map of cells.

    Raises:
        InnerVisionError: the cells make no square.
    """
    side = math.isqrt(num_cells)
    if side**2 != num_cells:
        raise InnerVisionError(
            f"the target's {num_cells} cells are no square grid, so that the ridge probe does not know where they "
            "stand: use probe.kind=pooled or resampler"
        )
    return side


def read_cells(states: Tensor, mask: Tensor, places: Tensor, num_cells: int) -> tuple[Tensor, Tensor]:
    """Interpolate a layer's states between its tokens, to the cells of a square map over the whole image.

    A token weighs (1 - |Δrow|/h) (1 - |Δcolumn|/w) at a cell, and nothing beyond; h and w are the sizes of the token,
    or of the cell where that is larger. On a full grid of tokens this is bilinear interpolation with antialiasing.
    Where tokens of several scales stand for a cell (tiles, and a picture of the whole beside them), the finest are
    read: they know best what is there, and a mixture that changes from cell to cell could not be read by one linear
    map. A cell is seen where its centre lies in a token; what an image processor crops away is not.

    Args:
        states: (B, T, D) in any floating-point type.
        mask: (B, T) bool, True = a token to read.
        places: (B, T, 4), row and column of each token's centre, height and width of what it stands for, as shares of
            the image; NaN for a token that stands nowhere.
        num_cells: N, a square number; cells are counted row by row.

    Returns:
        States (B, N, D) float32, 0 in cells that are not seen; and (B, N) bool, True = a cell that is seen.
    """
    side = grid_side(num_cells)
    mask = mask & places.isfinite().all(dim=2)
    centres = (torch.arange(side, device=places.device) + 0.5) / side
    sizes = places[..., 2:].clamp(min=1e-6)  # (B, T, 2)
    away = (centres[:, None, None] - places[:, None, :, :2]).abs()  # (B, side, T, 2): of rows, and of columns
    tents = (1 - away / sizes.clamp(min=1 / side)[:, None]).clamp(min=0)
    tents = tents.masked_fill(~mask[:, None, :, None], 0)  # 0 also where a place is NaN
    within = (away <= EDGE * sizes[:, None]) & mask[:, None, :, None]
    inside = (within[:, :, None, :, 0] & within[:, None, :, :, 1]).flatten(1, 2)  # (B, N, T)
    areas = sizes.prod(dim=2)  # (B, T)
    finest = areas[:, None].expand(inside.shape).masked_fill(~inside, math.inf).amin(dim=2)  # (B, N)
    weights = (tents[:, :, None, :, 0] * tents[:, None, :, :, 1]).flatten(1, 2)  # (B, N, T)
    weights = weights * (areas[:, None] <= FINER * finest[..., None])
    seen = inside.any(dim=2)
    weights = torch.where(seen[..., None], weights / weights.sum(dim=2, keepdim=True), 0)
    device = states.device.type
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        return torch.bmm(weights, states.masked_fill(~mask[..., None], 0).float()), seen


def read_all(states: Tensor, mask: Tensor) -> Tensor:
    """Give the mean of the visible tokens of states (B, T, D), as a map of one cell.  # (B, 1, D) float32"""
    visible = states.masked_fill(~mask[..., None], 0).float()
    return visible.sum(dim=1, keepdim=True) / mask.sum(dim=1)[:, None, None]
