"""Where a token stands, as features that a key can be made from."""

import math

import torch
from torch import Tensor

SEQUENCE_WAVES = 16
GRID_WAVES = 8
PLACE_CODE = 2 * SEQUENCE_WAVES + 2 * 2 * GRID_WAVES
"""Features of a token's place: sine and cosine of its index in the sequence, of its row and of its column."""


def encode_places(mask: Tensor, places: Tensor) -> Tensor:
    """Encode the places of tokens.

    The index in the sequence counts the visible tokens, so that padding on the left shifts nothing, with wavelengths
    as in "Attention Is All You Need" (https://arxiv.org/abs/1706.03762, section 3.5). Row and column (0…1) get the
    frequencies 1/2, 1, 2 … of NeRF (https://arxiv.org/abs/2003.08934, equation 4); unknown ones give zeros.

    Args:
        mask: (B, T) bool, True = a visible token.
        places: (B, T, 2), row and column from 0 to 1, NaN where unknown.

    Returns:
        (B, T, PLACE_CODE) float32, each from -1 to 1.
    """
    index = (mask.cumsum(dim=1) - 1).clamp(min=0).to(places.dtype)  # (B, T)
    exponents = torch.arange(SEQUENCE_WAVES, device=places.device, dtype=places.dtype) / SEQUENCE_WAVES
    sequence = index[..., None] / 10_000**exponents  # (B, T, waves)
    octaves = math.pi * 2.0 ** torch.arange(GRID_WAVES, device=places.device, dtype=places.dtype)
    angles = torch.cat([sequence, (places[..., None] * octaves).flatten(2)], dim=2)
    return torch.cat([angles.sin(), angles.cos()], dim=2).nan_to_num(0.0)
