"""What every kind of probe offers."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn


class Probe(nn.Module, ABC):
    """Reads one layer's states and predicts one target's features.

    It is made as `Kind(width_in, num_queries, width_out, settings, **options)`: from states of width `width_in` to
    features (num_queries, width_out). The settings are `ProbeSettings`; options of its own are arguments by name.
    """

    exact: ClassVar[bool] = False
    """Whether it is solved in closed form from one pass over the images, and not trained."""
    reads_places: bool = False
    """Whether it must be told where tokens stand."""

    @abstractmethod
    def forward(self, states: Tensor, mask: Tensor, places: Tensor | None = None) -> Tensor:
        """Predict the target's features.

        Args:
            states: (B, T, width_in), a layer's hidden states; 0 where they are masked.
            mask: (B, T) bool, True = a token to read.
            places: (B, T, 4), row and column of each token's centre and height and width of what it stands for, as
                shares of the image, NaN where it stands nowhere; given where `reads_places` asks for it.

        Returns:
            (B, num_queries, width_out)
        """
