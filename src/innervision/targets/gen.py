"""Generation: the image embedding that Stable unCLIP draws from, and the image that it draws."""

from collections.abc import Sequence
from copy import copy
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPVisionModelWithProjection

from innervision.checkpoints.checkpoint import Checkpoint
from innervision.checkpoints.layout import read_foreign_expert
from innervision.config import DrawSettings
from innervision.errors import InnerVisionError
from innervision.targets.target import Parts, Preparer, Target, native_size


class GenTarget(Target):
    """The projected CLIP embedding of the image, not normalised: one token. Decoded, it is a new image.

    Of a `StableUnCLIPImg2ImgPipeline` only the image encoder and its image processor are read, and the rest where
    `decode` is asked for. Unlike the pipeline, the target squashes the image and crops nothing.
    unCLIP: https://arxiv.org/abs/2204.06125
    """

    kind = "gen"
    draws_at_random = True
    default_expert = "sd2-community/stable-diffusion-2-1-unclip"

    draw = DrawSettings()
    """How images are drawn; see `drawing`."""

    def drawing(self, draw: DrawSettings) -> Self:
        """Give this target with other settings of drawing. It shares the weights; this one stays as it is."""
        other = copy(self)
        other.draw = draw
        return other

    def check(self) -> None:
        """See that images can be drawn as `draw` says.

        Raises:
            InnerVisionError: the settings do not fit the model, or the target was loaded without its head.
        """
        self._require_head()
        self.head.check(self.draw)

    @classmethod
    def read(cls, checkpoint: Checkpoint, size: int | None) -> Parts:
        """Keep of the pipeline the image encoder. See `Target.read`."""
        foreign = read_foreign_expert(cls.kind, checkpoint.source, checkpoint.revision)
        random_weights: dict[str, Tensor] = {}
        if foreign is not None:
            model, processor, whole = foreign.model, foreign.processor, Checkpoint(foreign.named or cls.default_expert)
        else:
            config = checkpoint.load_config(subfolder="image_encoder", model_type="clip_vision_model")
            processor = checkpoint.load_image_processor(CLIPImageProcessor, subfolder="feature_extractor")
            model, random_weights = checkpoint.load_model(
                CLIPVisionModelWithProjection, config, subfolder="image_encoder"
            )
            whole = checkpoint
        height, width = (size, size) if size else native_size(processor)
        head = partial(UnclipHead.read, whole, model)
        return Parts(model, random_weights, Preparer(processor, height, width), head)

    def shape(self) -> tuple[int, int]:
        """Give one token and the width of the projection.

        Raises:
            InnerVisionError: the pixels are not as many as the encoder takes.
        """
        height, width, native = self.preparer.height, self.preparer.width, self.module.config.image_size
        if (height, width) != (native, native):
            raise InnerVisionError(f"gen: the image encoder takes {native} × {native} pixels, not {height} × {width}")
        return 1, self.module.config.projection_dim

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Give the embedding (B, 1, C). See `Target.encode`."""
        return self.module(pixels).image_embeds[:, None]  # (B, 1, C)

    def decode_features(self, features: Tensor, given: tuple[Tensor, ...], seeds: Sequence[int] | None) -> Tensor:
        """Draw an image (B, 3, H, W), 0…1, from each embedding (B, 1, C), as `draw` says.

        An image depends on its embedding and its seed (0, 1, 2, … where none are given), not on the images beside it.
        """
        return self.head(features[:, 0], range(len(features)) if seeds is None else seeds, self.draw)


class UnclipHead(nn.Module):
    """Stable unCLIP as far as it is needed to draw from an image embedding, with an empty prompt."""

    pipeline: Any
    prompt: Tensor

    def __init__(self, pipeline: Any, prompt: Tensor) -> None:
        """Take a StableUnCLIPImg2ImgPipeline without text encoder, and the states (1, T, D) of the empty prompt."""
        super().__init__()
        self.pipeline = pipeline
        # what moves with the head to a device
        self.unet, self.vae, self.normalizer = pipeline.unet, pipeline.vae, pipeline.image_normalizer
        self.register_buffer("prompt", prompt)
        self.schedule = dict(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def read(cls, checkpoint: Checkpoint, encoder: CLIPVisionModelWithProjection) -> "UnclipHead":
        """Load the parts of the pipeline beside its image encoder.

        Raises:
            InnerVisionError: Diffusers is not installed; a part cannot be had or lacks weights.
        """
        try:
            import diffusers
        except ImportError as error:
            raise InnerVisionError("drawing images needs Diffusers: pip install 'innervision[gen]'") from error
        from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

        vae = checkpoint.load_part(diffusers.AutoencoderKL, "vae")
        vae.encoder = vae.quant_conv = None  # images are only decoded
        pipeline = diffusers.StableUnCLIPImg2ImgPipeline(
            feature_extractor=None,
            image_encoder=encoder,  # its weights are shared, not copied
            image_normalizer=checkpoint.load_part(StableUnCLIPImageNormalizer, "image_normalizer"),
            image_noising_scheduler=checkpoint.load_part(diffusers.DDPMScheduler, "image_noising_scheduler"),
            tokenizer=None,
            text_encoder=None,
            unet=checkpoint.load_part(diffusers.UNet2DConditionModel, "unet"),
            scheduler=checkpoint.load_part(diffusers.DDIMScheduler, "scheduler"),
            vae=vae,
        )
        return cls(pipeline, _empty_prompt(checkpoint))

    def check(self, settings: DrawSettings) -> None:
        """See that images can be drawn so.

        Raises:
            InnerVisionError: the settings do not fit the model.
        """
        most = {
            "steps": self._scheduler(settings.scheduler).config.num_train_timesteps,
            "noise_level": self.pipeline.image_noising_scheduler.config.num_train_timesteps - 1,
        }
        for name, bound in most.items():
            if getattr(settings, name) > bound:
                raise InnerVisionError(f"gen: {name} is at most {bound}, not {getattr(settings, name)}")
        if settings.size is not None and settings.size % self.pipeline.vae_scale_factor:
            raise InnerVisionError(
                f"gen: size must be a multiple of {self.pipeline.vae_scale_factor}, not {settings.size}"
            )

    def forward(self, embeddings: Tensor, seeds: Sequence[int], settings: DrawSettings) -> Tensor:
        """Draw images (B, 3, H, W), 0…1, from embeddings (B, C).

        Raises:
            InnerVisionError: the settings do not fit the model.
        """
        pipeline = self.pipeline
        pipeline.scheduler = self._scheduler(settings.scheduler)
        prompt = self.prompt.expand(len(embeddings), -1, -1)
        # On the CPU, so that every device draws the same noise; one for each image, so that none depends on others. The
        # CPU's generator uses 32 bits of its seed.
        generators = [torch.Generator().manual_seed((seed + settings.seed) % 2**32) for seed in seeds]
        try:
            return pipeline(
                image_embeds=embeddings,
                prompt_embeds=prompt,
                negative_prompt_embeds=prompt,
                generator=generators,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                noise_level=settings.noise_level,
                height=settings.size,
                width=settings.size,
                output_type="pt",
            ).images
        except ValueError as error:  # the pipeline's own checks, such as of the size
            raise InnerVisionError(f"gen cannot draw with these settings: {error}") from error

    def _scheduler(self, name: str) -> Any:
        import diffusers
        from diffusers.schedulers import KarrasDiffusionSchedulers

        known = [scheduler.name for scheduler in KarrasDiffusionSchedulers]
        if name not in known:
            raise InnerVisionError(f"gen: there is no scheduler {name!r}; use one of {', '.join(sorted(known))}")
        return getattr(diffusers, name).from_config(self.schedule)


def _empty_prompt(checkpoint: Checkpoint) -> Tensor:
    """Encode the empty prompt once, so that the text encoder need not stay."""
    config = checkpoint.load_config(subfolder="text_encoder", model_type="clip_text_model")
    encoder, random_weights = checkpoint.load_model(CLIPTextModel, config, subfolder="text_encoder")
    checkpoint.require_all("text_encoder", list(random_weights))
    tokens = checkpoint.load_tokenizer(subfolder="tokenizer")(
        "", padding="max_length", truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        return encoder.eval()(tokens.input_ids)[0]  # (1, T, D)
