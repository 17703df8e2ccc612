"""Segmentation: the last feature map of OneFormer's backbone."""

from torch import Tensor, nn
from transformers import OneFormerForUniversalSegmentation, OneFormerImageProcessor

from innervision.targets.checkpoint import Checkpoint
from innervision.targets.target import Parts, Preparer, Target


class SegTarget(Target):
    """The map of the last backbone stage after its LayerNorm, resized to 24 × 24: 576 tokens, row by row.

    The image is squashed to 768 × 768 pixels, which OneFormer's image processor then enlarges by its own rule
    (to 800 × 800). A `size` given to `load` is taken as it is. OneFormer: https://arxiv.org/abs/2211.06220
    """

    name = "seg"
    default_expert = "shi-labs/oneformer_coco_swin_large"
    size = 768
    grid = 24

    @classmethod
    def read(cls, checkpoint: Checkpoint, size: int | None) -> Parts:
        """Keep of OneFormer the backbone. See `Target.read`."""
        config = checkpoint.load_config(model_type="oneformer")
        # The names of the classes play no part in features, and Transformers looks them up on the Hub.
        processor = checkpoint.load_image_processor(OneFormerImageProcessor, class_info_file=None)
        model, random_weights = checkpoint.load_model(OneFormerForUniversalSegmentation, config)
        side = size or cls.size
        preparer = Preparer(processor, side, side, resize_again=size is None)
        return Parts(model.model.pixel_level_module.encoder, random_weights, preparer)

    def shape(self) -> tuple[int, int]:
        """Give the number of cells and the width of the last stage."""
        return self.grid**2, self.module.channels[-1]

    def features(self, pixels: Tensor) -> Tensor:
        """Give the tokens (B, 576, C) of the resized map. See `Target.features`."""
        last = self.module(pixels).feature_maps[-1].float()  # (B, C, h, w)
        size = (self.grid, self.grid)
        resized = nn.functional.interpolate(last, size, mode="bilinear", align_corners=False)
        return resized.flatten(2).transpose(1, 2)  # (B, 576, C)
