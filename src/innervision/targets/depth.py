"""Depth: the patch features of Depth Anything."""

from torch import Tensor
from transformers import DepthAnythingForDepthEstimation

from innervision.errors import InnerVisionError
from innervision.targets.checkpoint import Checkpoint
from innervision.targets.target import Parts, Preparer, Target


class DepthTarget(Target):
    """The patch tokens of the last block that the depth head reads, after the final LayerNorm, without CLS.

    The image is squashed to 336 × 336 pixels: with patches of 14, that is 576 tokens, row by row.
    Depth Anything V2: https://arxiv.org/abs/2406.09414
    """

    name = "depth"
    default_expert = "depth-anything/Depth-Anything-V2-Large-hf"
    size = 336

    @classmethod
    def read(cls, checkpoint: Checkpoint, size: int | None) -> Parts:
        """Keep of Depth Anything the backbone. See `Target.read`."""
        config = checkpoint.load_config(model_type="depth_anything")
        processor = checkpoint.load_image_processor()
        model, random_weights = checkpoint.load_model(DepthAnythingForDepthEstimation, config)
        side = size or cls.size
        # What the depth head reads, whatever the folder says for other uses of the backbone.
        model.backbone.config.apply_layernorm = True
        model.backbone.config.reshape_hidden_states = False
        return Parts(model.backbone, random_weights, Preparer(processor, side, side))

    def shape(self) -> tuple[int, int]:
        """Give the number of patches and the width of the backbone.

        Raises:
            InnerVisionError: the pixels do not divide into patches.
        """
        height, width, patch = self.preparer.height, self.preparer.width, self.module.config.patch_size
        if height % patch or width % patch:
            raise InnerVisionError(f"depth: {height} × {width} pixels do not divide into patches of {patch}")
        return (height // patch) * (width // patch), self.module.channels[-1]

    def features(self, pixels: Tensor) -> Tensor:
        """Give the patch tokens (B, N, C). See `Target.features`."""
        return self.module(pixels).feature_maps[-1][:, 1:]  # (B, N, C)
