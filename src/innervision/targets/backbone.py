"""Any vision backbone of Hugging Face as a target: DINOv2, SigLIP, CLIP, ResNet, ConvNeXt and others."""

import math
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import MODEL_MAPPING, AutoModel
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

from innervision.checkpoints.checkpoint import Checkpoint
from innervision.errors import InnerVisionError, first_line
from innervision.targets.target import Parts, Preparer, Target, native_size

MOST_PREFIX_TOKENS = 16
"""CLS and registers; where more tokens than this are not patches, they are something else."""


class BackboneTarget(Target):
    """The last hidden state of a vision model, one token per patch or cell, row by row.

    Tokens that stand before the patches (CLS, registers) are left out. Of a model with several encoders, as
    CLIP and SigLIP, the vision encoder is taken. The image is squashed to the size that the model's image
    processor crops to, or else resizes to.
    """

    kind = "backbone"

    @classmethod
    def read(cls, checkpoint: Checkpoint, size: int | None) -> Parts:
        """Keep of the model its vision encoder. See `Target.read`."""
        config = checkpoint.load_config()
        processor = checkpoint.load_image_processor()
        height, width = (size, size) if size else native_size(processor)
        model_class: Any = AutoModel
        if type(config) not in MODEL_MAPPING:  # not AutoBackbone, which asks the Hub even about folders
            model_class = MODEL_FOR_BACKBONE_MAPPING.get(type(config), AutoModel)
        model, random_weights = checkpoint.load_model(model_class, config)
        encoder = model.get_encoder("image")
        if encoder.main_input_name != "pixel_values":
            raise InnerVisionError(f"{checkpoint.expert} ({type(model).__name__}) is not a vision model")
        return Parts(encoder, random_weights, Preparer(processor, height, width))

    def shape(self) -> tuple[int, int]:
        """Encode a blank image, since configurations have no common way to tell the shape.

        Raises:
            InnerVisionError: the model does not turn an image into one sequence or map of features.
        """
        blank = Image.new("RGB", (self.preparer.width, self.preparer.height))
        try:
            _, num_tokens, width = self.encode([blank]).shape
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:
            raise InnerVisionError(
                f"{self.expert} cannot be a backbone: an image of {blank.height} × {blank.width} pixels "
                f"does not become a sequence or map of features ({first_line(error)})"
            ) from error
        return num_tokens, width

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Give the tokens (B, N, C) of the patches or cells. See `Target.encode`."""
        output = self.module(pixels)
        states = output.feature_maps[-1] if "feature_maps" in output else output.last_hidden_state
        if states.ndim == 4:
            return states.flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, N, C)
        return states[:, self._count_prefix(states.shape[1], *pixels.shape[-2:]) :]  # (B, N, C)

    def _count_prefix(self, num_tokens: int, height: int, width: int) -> int:
        """Count the tokens that are not patches: what the grid of patches leaves over.

        Where the model names no patches, or merges them on the way (Swin), the grid is the largest square.

        Raises:
            ValueError: too much is left over.
        """
        patch = getattr(self.module.config, "patch_size", None) or 1
        rows, columns = patch if isinstance(patch, list | tuple) else (patch, patch)
        num_patches = (height // rows) * (width // columns)
        if num_patches > num_tokens:
            num_patches = math.isqrt(num_tokens) ** 2
        prefix = num_tokens - num_patches
        if prefix > MOST_PREFIX_TOKENS:
            raise ValueError(f"{prefix} of its {num_tokens} tokens are not patches")
        return prefix
