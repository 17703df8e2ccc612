"""Depth: the patch features of Depth Anything, and the map that its head makes of them."""

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import DepthAnythingForDepthEstimation

from innervision.checkpoints.checkpoint import Checkpoint
from innervision.checkpoints.layout import read_foreign_expert
from innervision.errors import InnerVisionError
from innervision.targets.target import Context, Parts, Preparer, Target


class DepthTarget(Target):
    """The patch tokens of the last block that the depth head reads, after the final LayerNorm, without CLS.

    The image is squashed to 336 × 336 pixels: with patches of 14, that is 576 tokens, row by row. Decoded, they are a
    map of the squashed image, relative inverse depth: larger = closer. Depth Anything V2:
    https://arxiv.org/abs/2406.09414
    """

    kind = "depth"
    default_expert = "depth-anything/Depth-Anything-V2-Large-hf"
    size = 336

    @classmethod
    def read(cls, checkpoint: Checkpoint, size: int | None) -> Parts:
        """Keep of Depth Anything the backbone. See `Target.read`."""
        random_weights: dict[str, Tensor] = {}
        foreign = read_foreign_expert(cls.kind, checkpoint.source, checkpoint.revision)
        if foreign is not None:
            model, processor = foreign.model, foreign.processor
        else:
            config = checkpoint.load_config(model_type="depth_anything")
            processor = checkpoint.load_image_processor()
            model, random_weights = checkpoint.load_model(DepthAnythingForDepthEstimation, config)
        side = size or cls.size
        # What the depth head reads, whatever the folder says for other uses of the backbone.
        model.backbone.config.apply_layernorm = True
        model.backbone.config.reshape_hidden_states = False
        head = nn.ModuleDict({"neck": model.neck, "head": model.head})
        return Parts(model.backbone, random_weights, Preparer(processor, side, side), lambda: head)

    def shape(self) -> tuple[int, int]:
        """Give the number of patches and the width of the backbone.

        Raises:
            InnerVisionError: the pixels do not divide into patches.
        """
        height, width, patch = self.preparer.height, self.preparer.width, self.module.config.patch_size
        if height % patch or width % patch:
            raise InnerVisionError(f"depth: {height} × {width} pixels do not divide into patches of {patch}")
        return (height // patch) * (width // patch), self.module.channels[-1]

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Give the patch tokens (B, N, C). See `Target.encode`."""
        return self.module(pixels).feature_maps[-1][:, 1:]  # (B, N, C)

    def context_of_pixels(self, pixels: Tensor) -> Context:
        """Give the features, and the map that the expert makes of all the blocks it taps. See `Target.context`."""
        tapped = self.module(pixels).feature_maps  # each (B, 1 + N, C), CLS first
        return Context(tapped[-1][:, 1:], self._map(tapped))

    def decode_features(self, features: Tensor, given: tuple[Tensor, ...], seeds: Sequence[int] | None) -> Tensor:
        """Give the map (B, H, W) of features that stand for all the blocks that the head reads."""
        states = nn.functional.pad(features, (0, 0, 1, 0))  # the head drops the first token, CLS
        return self._map([states] * len(self.module.channels))

    def _map(self, states: Sequence[Tensor]) -> Tensor:
        patch = self.module.config.patch_size
        grid = self.preparer.height // patch, self.preparer.width // patch
        return self.head["head"](self.head["neck"](list(states), *grid), *grid)  # (B, H, W)
