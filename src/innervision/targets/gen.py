"""Generation: the image embedding that Stable unCLIP draws from."""

from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from innervision.errors import InnerVisionError
from innervision.targets.checkpoint import Checkpoint
from innervision.targets.target import Parts, Preparer, Target, native_size


class GenTarget(Target):
    """The projected CLIP embedding of the image, not normalised: one token.

    Of a `StableUnCLIPImg2ImgPipeline` only the image encoder and its image processor are read. Unlike the
    pipeline, the target squashes the image and crops nothing. unCLIP: https://arxiv.org/abs/2204.06125
    """

    name = "gen"
    default_expert = "stabilityai/stable-diffusion-2-1-unclip"

    @classmethod
    def read(cls, checkpoint: Checkpoint, size: int | None) -> Parts:
        """Keep of the pipeline the image encoder. See `Target.read`."""
        config = checkpoint.load_config(subfolder="image_encoder", model_type="clip_vision_model")
        processor = checkpoint.load_image_processor(CLIPImageProcessor, subfolder="feature_extractor")
        model, random_weights = checkpoint.load_model(CLIPVisionModelWithProjection, config, subfolder="image_encoder")
        height, width = (size, size) if size else native_size(processor)
        return Parts(model, random_weights, Preparer(processor, height, width))

    def shape(self) -> tuple[int, int]:
        """Give one token and the width of the projection.

        Raises:
            InnerVisionError: the pixels are not as many as the encoder takes.
        """
        height, width, native = self.preparer.height, self.preparer.width, self.module.config.image_size
        if (height, width) != (native, native):
            raise InnerVisionError(f"gen: the image encoder takes {native} × {native} pixels, not {height} × {width}")
        return 1, self.module.config.projection_dim

    def features(self, pixels: Tensor) -> Tensor:
        """Give the embedding (B, 1, C). See `Target.features`."""
        return self.module(pixels).image_embeds[:, None]  # (B, 1, C)
