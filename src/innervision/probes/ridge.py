"""The exact probes: linear from the states at a cell's place, solved in closed form (`innervision.probes.moments`)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from innervision.config import ProbeSettings
from innervision.probes.cells import grid_side, read_all, read_cells
from innervision.probes.probe import Probe


class Ridge(Probe):
    """Predicts ȳ + (x - x̄) W in every cell: x is the layer's states there, x̄ and ȳ are means over training images.

    One map W serves all cells. A target of one cell is read from the mean of the visible tokens. In a cell that the
    MLLM never saw, the prediction is the mean feature.
    """

    exact = True
    pooled: ClassVar[bool] = False
    """Whether every cell is read from the mean of the visible tokens, by a map of its own."""

    def __init__(self, width_in: int, num_queries: int, width_out: int, settings: ProbeSettings) -> None:
        """Make a probe that predicts 0. See `Probe`.

        Raises:
            InnerVisionError: the target's cells make no square.
        """
        super().__init__()
        cells, width = (1, num_queries * width_out) if self.pooled else (num_queries, width_out)
        grid_side(cells)
        self.shape = (num_queries, width_out)
        self.reads_places = cells > 1
        self.weight = nn.Parameter(torch.zeros(width_in, width), requires_grad=False)
        self.states_mean = nn.Parameter(torch.zeros(cells, width_in), requires_grad=False)
        self.features_mean = nn.Parameter(torch.zeros(cells, width), requires_grad=False)

    @property
    def num_cells(self) -> int:
        """Of the cells that share the map."""
        return len(self.states_mean)

    def set_solution(self, weight: Tensor, states_mean: Tensor, features_mean: Tensor) -> None:
        """Take the map (D, C), and the means of states (N, D) and of features (N, C)."""
        self.weight.copy_(weight)
        self.states_mean.copy_(states_mean)
        self.features_mean.copy_(features_mean)

    @staticmethod
    def read(states: Tensor, mask: Tensor, places: Tensor | None, num_cells: int) -> tuple[Tensor, Tensor]:
        """Give the states (B, N, D) in each cell, float32, and the cells that are seen (B, N)."""
        if num_cells == 1:
            return read_all(states, mask), mask.any(dim=1, keepdim=True)
        if places is None:
            raise ValueError("the ridge probe reads states at their places: give the places of the tokens")
        return read_cells(states, mask, places, num_cells)

    def forward(self, states: Tensor, mask: Tensor, places: Tensor | None = None) -> Tensor:
        """Predict the target's features. See `Probe.forward`."""
        read, seen = self.read(states, mask, places, self.num_cells)
        centred = (read - self.states_mean) * seen[..., None]
        return (self.features_mean + centred @ self.weight).reshape(len(states), *self.shape)


class Pooled(Ridge):
    """A linear map for every cell from the mean of the visible tokens: for tokens that have no place.

    It has width_in x num_queries x width_out weights: few for one embedding, very many for a full-size feature map.
    """

    pooled = True
