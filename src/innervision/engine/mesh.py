"""The table in which processes stand: a row holds one MLLM together, a column shares the images.

Without `split_mllm` each process is a row of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from innervision.engine.processes import Rank
from innervision.errors import InnerVisionError, require
from innervision.targets.target import Maps, Target, take_rows


@dataclass(frozen=True)
class Mesh:
    """Where a process stands."""

    all: Rank = field(default_factory=Rank)
    """Among all processes. The first one writes and speaks."""
    images: Rank = field(default_factory=Rank)
    """Among those of its column: they have probes of the same layers, and other images."""
    layers: Rank = field(default_factory=Rank)
    """Among those of its row: they hold one MLLM together, see the same images, and have probes of other layers."""

    @classmethod
    def of(cls, rank: Rank, split: int) -> "Mesh":
        """Share out images and layers. All processes make this call together.

        Args:
            rank: of this process.
            split: how many processes hold one MLLM together.

        Raises:
            InnerVisionError: they do not come out even.
        """
        if split == 1:
            return cls(rank, rank, Rank())
        require(
            rank.count > 1,
            f"split_mllm={split} needs as many processes: torchrun --nproc-per-node {split} -m innervision …",
        )
        require(
            rank.count % split == 0,
            f"{rank.count} processes do not make whole groups of {split} that hold an MLLM (split_mllm)",
        )
        rows = [[*range(start, start + split)] for start in range(0, rank.count, split)]
        columns = [[*range(column, rank.count, split)] for column in range(split)]
        return cls(rank, rank.among(columns, "column"), rank.among(rows, "row"))

    @property
    def leads_row(self) -> bool:
        """Whether this process speaks for those that hold an MLLM together."""
        return self.layers.index == 0

    def own(self, layers: Sequence[int]) -> list[int]:
        """Choose the layers whose probes this process has.

        Raises:
            InnerVisionError: there are fewer layers than processes in a row.
        """
        require(
            len(layers) >= self.layers.count,
            f"{self.layers.count} processes hold the MLLM together (split_mllm), and each needs the probes of one "
            f"layer at least; {len(layers)} are probed",
        )
        return [*layers[self.layers.index :: self.layers.count]]

    def require_same_images(self, names: Sequence[str]) -> None:
        """See that all processes of this row have read the same images of a batch.

        Raises:
            InnerVisionError: one of them could not read an image that another one has.
        """
        read = self.layers.exchange(list(names))
        if odd := sorted(set().union(*read) - set(read[0]).intersection(*read)):
            raise InnerVisionError(
                f"{odd[0]} can be read by some of the processes that hold the MLLM together, and not by all: see to "
                "the drive, and call again"
            )

    def encode(self, target: Target, pixels: Maps) -> Tensor:
        """Give an expert's features (B, N, C) of a batch; each process of this row encodes a share of the images.

        Args:
            target: of the expert.
            pixels: of the batch, the same in the whole row.
        """
        if self.layers.count == 1:
            return target.encode(pixels)
        rows = [*range(len(pixels))]
        mine = rows[self.layers.index :: self.layers.count]
        own = target.encode(take_rows(pixels, mine)) if mine else torch.empty(0, target.num_tokens, target.width)
        features = torch.zeros(len(rows), *own.shape[1:], device=target.device)
        features[mine] = own.to(features)
        self.layers.sum([features])  # zeros but for one process, so that nothing is rounded
        return features
