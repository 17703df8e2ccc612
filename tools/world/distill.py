"""Distilling experts into an MLLM: at chosen decoder layers, small heads learn to predict the experts' features.

The embedding losses of OLA-VLM (https://arxiv.org/abs/2412.09585), beside the loss of captions. The heads are thrown
away; what stays is what the losses changed in the MLLM.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tools.world.training import Scenes
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from innervision import Target, load_targets
from innervision.errors import InnerVisionError
from innervision.files import atomic_write


class Loss(NamedTuple):
    """The embedding loss of one expert."""

    layer: int
    """Decoder layer whose states are read, from 1."""
    weight: float
    """Of the loss beside that of captions."""


LOSSES = {"seg": Loss(2, 1.0), "depth": Loss(4, 1.0), "gen": Loss(6, 1.0)}
"""Expert -> its loss."""


def expert_features(experts: Path, scenes: Scenes, kept: Path, *, progress: bool = True) -> dict[str, Tensor]:
    """Give what the experts in a folder see in the scenes, less the mean of each cell, in units of the spread.

    Args:
        experts: folder of `depth`, `seg` and `gen`.
        scenes: N scenes.
        kept: folder in which the features are kept for another call.
        progress: show bars.

    Returns:
        Expert -> (N, cells, width) float16, with mean 0 in each number of each cell, and mean square 1 over all.

    Raises:
        InnerVisionError: the folder lacks an expert.
    """
    if missing := [name for name in LOSSES if not (experts / name).is_dir()]:
        raise InnerVisionError(f"{experts} lacks the expert {missing[0]}, which is distilled: build it first")
    features = {}
    for name in LOSSES:
        path = kept / f"{name}-features-{len(scenes)}.pt"
        if not path.exists():
            [target] = load_targets([f"{name}={experts.resolve() / name}"], device="cpu")
            with atomic_write(path) as temporary:
                torch.save(_standardize(_encode(target, scenes, progress=progress)), temporary)
        features[name] = torch.load(path, weights_only=True)
    return features


def _encode(target: Target, scenes: Scenes, *, progress: bool) -> Tensor:
    batches = np.array_split(np.arange(len(scenes)), -(-len(scenes) // 50))
    encoded = []
    for batch in tqdm(batches, desc=f"features of {target.name}", disable=not progress):
        encoded.append(target.encode([Image.fromarray(image) for image in scenes.images[batch]]))
    return torch.cat(encoded)


def _standardize(features: Tensor) -> Tensor:
    centred = features - features.mean(0)
    return (centred / centred.square().mean().sqrt()).half()


class EmbeddingLoss(nn.Module):
    """Smooth L1 between experts' features and what linear heads predict from the states of `LOSSES`' layers.

    The heads read as exact probes do: the states at the place of each cell, or, for a single cell, the mean over the
    prompt's tokens.
    """

    def __init__(self, features: Mapping[str, Tensor], width: int) -> None:
        super().__init__()
        self.features = features
        self.heads = nn.ModuleDict({name: nn.Linear(width, known.shape[-1]) for name, known in features.items()})

    def forward(
        self,
        states: Sequence[Tensor],
        chosen: NDArray[np.int64],
        image: slice,
        prompt: int,
        experts: Iterable[str] = tuple(LOSSES),
    ) -> Tensor:
        """Give the weighted sum of the losses.

        Args:
            states: of all layers, 0 first, each (B, T, D).
            chosen: the B scenes' rows in the features.
            image: where the image's tokens stand, row by row.
            prompt: number of tokens, the image's included, before the captions begin.
            experts: whose losses count.
        """
        losses = []
        for name in experts:
            layer, weight = LOSSES[name]
            truth = self.features[name][torch.from_numpy(chosen)].float()
            read = read_cells(states[layer], truth.shape[1], image, prompt)
            losses.append(weight * F.smooth_l1_loss(self.heads[name](read), truth))
        return torch.stack(losses).sum()


class DistillingLesson:
    """The captions of scenes, and beside them the experts' features, from the same pass of the model."""

    def __init__(self, captions: Any, embeddings: EmbeddingLoss, experts: Iterable[str] = tuple(LOSSES)) -> None:
        """Take a `tools.world.lessons.CaptionLesson`, what is added to its loss, and the experts that are distilled."""
        self.captions, self.embeddings, self.experts = captions, embeddings, tuple(experts)

    def loss(self, rng: np.random.Generator) -> Tensor:
        """Give the captions' loss for what they would draw alone, and the embedding losses."""
        drawn = self.captions.draw(rng)
        output = self.captions.model(**drawn.inputs, use_cache=False, output_hidden_states=True)
        token = self.captions.processor.image_token_id
        first = drawn.prompt.index(token)
        image = slice(first, first + drawn.prompt.count(token))
        return output.loss + self.embeddings(output.hidden_states, drawn.chosen, image, len(drawn.prompt), self.experts)


def read_cells(states: Tensor, cells: int, image: slice, prompt: int) -> Tensor:
    """Give the states (B, cells, D) at the places of a square of cells, or their mean over the prompt for one cell."""
    if cells == 1:
        return states[:, :prompt].mean(1, keepdim=True)
    tokens = states[:, image]
    side, wanted = (round(count**0.5) for count in (tokens.shape[1], cells))
    grid = tokens.transpose(1, 2).unflatten(2, (side, side))
    resized = F.interpolate(grid, (wanted, wanted), mode="bilinear", antialias=True)
    return resized.flatten(2).transpose(1, 2)
