"""The linear probe: a control that can read what the tokens say together, but not attend to any of them."""

import torch
from torch import Tensor, nn

from innervision.config import ProbeSettings


class Linear(nn.Module):
    """One linear map for each query position, from the mean of the visible tokens.

    It has num_queries x width_in x width_out weights: few for one embedding, very many for a full-size feature map.
    """

    def __init__(self, width_in: int, num_queries: int, width_out: int, settings: ProbeSettings) -> None:
        """Make a probe from states of width `width_in` to features (num_queries, width_out)."""
        super().__init__()
        self.shape = (num_queries, width_out)
        self.map = nn.Linear(width_in, num_queries * width_out)

    def forward(self, states: Tensor, mask: Tensor, places: Tensor | None = None) -> Tensor:
        """Predict features from states (B, T, width_in) where `mask` (B, T) is True.  # (B, num_queries, width_out)"""
        weights = (mask / mask.sum(dim=1, keepdim=True)).to(states.dtype)  # (B, T)
        mean = torch.bmm(weights[:, None], states).squeeze(1)  # (B, width_in)
        return self.map(mean).unflatten(1, self.shape)
