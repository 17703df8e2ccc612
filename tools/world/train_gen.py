"""The image generator of the world: a Stable unCLIP that draws a scene again from its image embedding.

Three models are trained, one after the other: the image encoder, as the bottleneck between an image and what it
shows; a variational auto-encoder for the image's latents; and a U-Net that denoises latents, given the embedding.
https://arxiv.org/abs/2204.06125, https://arxiv.org/abs/2112.10752
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers as hf
from PIL import Image
from tokenizers import pre_tokenizers
from tools.world.card import Figure, Section
from tools.world.training import SIZE, Scenes, held_out, optimize, save_half
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image, to_tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from innervision.config import DrawSettings
from innervision.metrics.frechet import frechet_distance
from innervision.targets.gen import GenTarget
from innervision.world.scenes import CATEGORIES, COLOURS, SHAPES

WIDTH = 128
"""Of the image embedding."""

DRAWN = SIZE // 2
"""Side in pixels of the images that are drawn."""

LATENT_CHANNELS, LATENT_SIDE = 6, DRAWN // 4

STEPS = {"image encoder": 1300, "VAE": 3000, "U-Net": 2500}
"""Of each training."""

Teach = Callable[[str, Any, Callable[[int], Tensor], float], None]
"""Minimises a loss: called with the name of the training, the model, the loss of a step and the learning rate."""


def train(out: Path, scenes: Scenes, seed: int, *, effort: float, progress: bool) -> None:
    """Train the pipeline and save it to `out`/gen. Its three trainings are kept in `out` as they are finished."""
    steps = {name: max(2, round(effort * count)) for name, count in STEPS.items()}

    def teach(name: str, model: Any, loss: Callable[[int], Tensor], lr: float) -> None:
        saved = out / f"{name}.safetensors"
        optimize(model, loss, steps[name], lr, saved=saved, label=f"gen: {name}", progress=progress)

    encoder = train_encoder(scenes, seed, teach)
    vae = train_vae(scenes, seed, teach)
    save_half(train_pipeline(encoder, vae, scenes, seed, teach), out / "gen")


def measure(models: Path, *, progress: bool) -> list[Section]:
    """Say how near variations of held-out scenes come to scenes, and each to its own."""
    target = GenTarget.load(str(models / "gen"), head=True)
    head: Any = target.head
    target.draw = DrawSettings(steps=10, guidance=1.0)
    count = 400
    images = [Image.fromarray(scene.image) for scene in held_out(2 * count)]
    real, other = describe(target, images).split(count)
    normalizer = head.normalizer
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    given = {
        "own": real,
        "random": normalizer.unscale(noise.to(real.device)),
        "mean": normalizer.mean.expand_as(real),
    }
    drawn = {name: draw(target, embeddings, images) for name, embeddings in given.items()}
    seen = {name: describe(target, [to_pil_image(image) for image in made]) for name, made in drawn.items()}
    seen["real"] = real
    far = {name: frechet_distance(features.cpu().numpy(), other.cpu().numpy()) for name, features in seen.items()}
    found = torch.cat([nearest_is_own(a, b) for a, b in zip(seen["own"].split(100), real.split(100), strict=True)])
    colours = {name: F.adaptive_avg_pool2d(made, 7) for name, made in drawn.items()}
    colours["another scene's"] = colours["own"].roll(1, 0)
    truth = torch.stack([F.adaptive_avg_pool2d(to_tensor(image), 7) for image in images[:count]])
    spread = truth.var(0, correction=0).mean()
    explained = {name: 100 * (1 - (colour - truth).square().mean() / spread).item() for name, colour in colours.items()}
    return [
        Section(
            "gen",
            _MADE,
            [
                Figure(
                    "Fréchet distance of variations to other scenes, on the image encoder's embeddings",
                    far["own"],
                    {"real scenes": far["real"], "random embeddings": far["random"], "mean embedding": far["mean"]},
                    count,
                ),
                Figure(
                    "variations nearest to their own scene among 100, by embedding, %",
                    100 * found.float().mean().item(),
                    {"chance": 1.0},
                    count,
                ),
                Figure(
                    "colour at 7 × 7 places: variance that the variation explains, %",
                    explained["own"],
                    {"of another scene": explained["another scene's"], "of the mean embedding": explained["mean"]},
                    count,
                ),
            ],
        )
    ]


def draw(target: GenTarget, embeddings: Tensor, images: Sequence[Image.Image]) -> Tensor:
    """Draw an image from each embedding (B, C), each with noise of its own: (B, 3, H, W), on the CPU."""
    context = target.context(images[:1])  # which has no part in it
    blocks = torch.arange(len(embeddings)).split(50)
    return torch.cat([target.decode(embeddings[block, None], context, seeds=block.tolist()).cpu() for block in blocks])


def describe(target: GenTarget, images: Sequence[Image.Image]) -> Tensor:
    """Give the embeddings (B, C) of images."""
    return torch.cat([target.encode(images[start : start + 50])[:, 0] for start in range(0, len(images), 50)])


def nearest_is_own(embeddings: Tensor, real: Tensor) -> Tensor:
    """Whether embedding i (N, C) is nearer to real embedding i than to the others: (N,)."""
    return torch.cdist(embeddings, real).argmin(1) == torch.arange(len(real), device=real.device)


def pixels_of(scenes: Scenes, chosen: Any) -> Tensor:
    """Give the images of some scenes as the image encoder takes them: (B, 3, H, W)."""
    return (images_of(scenes, chosen) - _MEAN) / _STD


def small_of(scenes: Scenes, chosen: Any) -> Tensor:
    """Give the images of some scenes as they are to be drawn: (B, 3, H, W), from -1 to 1."""
    return 2 * F.avg_pool2d(images_of(scenes, chosen), SIZE // DRAWN) - 1


def images_of(scenes: Scenes, chosen: Any) -> Tensor:
    """Give the images of some scenes: (B, 3, H, W), from 0 to 1."""
    return torch.from_numpy(scenes.images[chosen]).permute(0, 3, 1, 2).float() / 255


# --- the image encoder --------------------------------------------------------------------------------------


class Decoder(nn.Module):
    """What makes the image encoder learn; it is thrown away afterwards.

    From a normalised, slightly noisy embedding it draws the scene's colours and categories at a quarter of its
    size, and tells which pairs of colour and shape are there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm: Any = nn.BatchNorm1d(WIDTH, affine=False)
        self.pairs = nn.Linear(WIDTH, len(COLOURS) * len(SHAPES))
        self.draw = nn.Sequential(
            nn.Linear(WIDTH, 64 * 7 * 7),
            nn.Unflatten(1, (64, 7, 7)),
            *_stage(64, 64),
            nn.Upsample(scale_factor=2),
            *_stage(64, 32),
            nn.Upsample(scale_factor=2),
            *_stage(32, 32),
            nn.Conv2d(32, 3 + len(CATEGORIES), 3, padding=1),
        )

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give colours (B, 3, 28, 28), category logits (B, K, 28, 28) and pair logits (B, colours · shapes)."""
        embeddings = self.norm(embeddings)
        if self.training:
            embeddings = embeddings + 0.15 * torch.randn_like(embeddings)
        drawn = self.draw(embeddings)
        return drawn[:, :3], drawn[:, 3:], self.pairs(embeddings)


def _stage(width: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(width, out, 3, padding=1), nn.GroupNorm(8, out), nn.SiLU()]


def train_encoder(scenes: Scenes, seed: int, teach: Teach) -> hf.CLIPVisionModelWithProjection:
    """Train the image encoder together with a `Decoder`."""
    torch.manual_seed(seed)
    encoder: Any = hf.CLIPVisionModelWithProjection(
        hf.CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIZE,
            patch_size=16,
            projection_dim=WIDTH,
            hidden_act="gelu",
        )
    )
    # CLIP's own start leaves places too faint beside patches to be told apart soon.
    nn.init.normal_(encoder.vision_model.embeddings.position_embedding.weight, std=0.3)
    decoder = Decoder()
    categories = torch.from_numpy(scenes.semantic[:, 2::4, 2::4].copy())
    pairs = _pairs(scenes)
    rng = np.random.default_rng(seed)

    def loss(step: int) -> Tensor:
        chosen = rng.integers(len(scenes), size=32)
        pixels, labels = pixels_of(scenes, chosen), categories[chosen].long()
        if step % 2:
            pixels, labels = pixels.flip(-1), labels.flip(-1)
        colours, logits, seen = decoder(encoder(pixels).image_embeds)
        small = F.avg_pool2d(pixels, 4)
        weight = torch.where(labels < len(SHAPES), 3.0, 1.0)
        drawing = (F.smooth_l1_loss(colours, small, reduction="none", beta=0.3).mean(1) * weight).mean()
        naming = (F.cross_entropy(logits, labels, reduction="none") * weight).mean()
        telling = F.binary_cross_entropy_with_logits(seen, pairs[chosen])
        return 2 * drawing + 0.3 * naming + 2 * telling

    teach("image encoder", nn.ModuleList([encoder, decoder]), loss, 1.5e-3)
    _normalise(encoder, scenes)
    return encoder


@torch.no_grad()
def _normalise(encoder: Any, scenes: Scenes) -> None:
    """Give every number of the embedding a mean of 0 and a standard deviation of 1 over the scenes.

    The projection has no bias: a shift goes into that of the norm before it.
    """
    sample = np.linspace(0, len(scenes) - 1, min(len(scenes), 2000), dtype=int)
    embeddings = torch.cat([encoder(pixels_of(scenes, block)).image_embeds for block in np.array_split(sample, 40)])
    weight = encoder.visual_projection.weight
    weight /= embeddings.std(0)[:, None]
    shift = -(embeddings.mean(0) / embeddings.std(0))
    encoder.vision_model.post_layernorm.bias += torch.linalg.lstsq(weight.double(), shift.double()[:, None])[0][:, 0]


def _pairs(scenes: Scenes) -> Tensor:
    """Which pairs of colour and shape are to be seen: (N, colours · shapes)."""
    seen = torch.zeros(len(scenes), len(COLOURS), len(SHAPES))
    colours, shapes = list(COLOURS), list(SHAPES)
    for i, objects in enumerate(scenes.objects):
        for item in objects:
            if item["named"]:
                seen[i, colours.index(item["colour"]), shapes.index(item["shape"])] = 1
    return seen.flatten(1)


# --- the latents --------------------------------------------------------------------------------------------


def train_vae(scenes: Scenes, seed: int, teach: Teach) -> Any:
    """Train a variational auto-encoder on pieces of the small images: an error, their edges, and little else."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    widths = (8, 16, 32)
    vae: Any = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=1,
        sample_size=DRAWN,
        mid_block_add_attention=False,
    )
    with torch.no_grad():  # start with little noise in the latents, and blocks that change nothing: learns sooner
        vae.quant_conv.bias[LATENT_CHANNELS:] = -6
        for name, weight in vae.named_parameters():
            if name.endswith("conv2.weight"):
                weight.zero_()
    rng = np.random.default_rng(seed)
    piece = 32

    def loss(step: int) -> Tensor:
        chosen = rng.integers(len(scenes), size=8)
        row, column = rng.integers((DRAWN - piece) // 4 + 1, size=2) * 4
        images = small_of(scenes, chosen)[:, :, row : row + piece, column : column + piece]
        latents = vae.encode(images).latent_dist
        apart = vae.decode(latents.sample()).sample - images
        edges = apart.diff(dim=2).abs().mean() + apart.diff(dim=3).abs().mean()
        return apart.abs().mean() + 2 * apart.square().mean() + edges + 1e-4 * latents.kl().mean() / 64

    teach("VAE", vae, loss, 3e-3)
    with torch.no_grad():
        latents = _latents(vae, scenes, np.arange(min(len(scenes), 500)))
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    return vae


def _latents(vae: Any, scenes: Scenes, chosen: Any) -> Tensor:
    return vae.encode(small_of(scenes, chosen)).latent_dist.mean


# --- denoising ----------------------------------------------------------------------------------------------


def assemble(encoder: hf.CLIPVisionModelWithProjection, vae: Any) -> Any:
    """Make the pipeline around its two trained models. The prompt has no part in what it draws."""
    import diffusers
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    tokenizer: Any = _tokenizer()
    widths = (32, 64, 72)
    return diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=hf.CLIPImageProcessor(
            size={"height": SIZE, "width": SIZE}, crop_size={"height": SIZE, "width": SIZE}
        ),
        image_encoder=encoder,
        image_normalizer=StableUnCLIPImageNormalizer(WIDTH),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=tokenizer,
        text_encoder=hf.CLIPTextModel(
            hf.CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=1,
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        ),
        unet=diffusers.UNet2DConditionModel(
            sample_size=LATENT_SIDE,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            block_out_channels=widths,
            down_block_types=["DownBlock2D"] * len(widths),
            mid_block_type="UNetMidBlock2D",
            up_block_types=["UpBlock2D"] * len(widths),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=16,
            attention_head_dim=8,
            time_embedding_dim=128,
            resnet_time_scale_shift="scale_shift",
            class_embed_type="projection",
            projection_class_embeddings_input_dim=2 * WIDTH,
        ),
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="linear",
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            clip_sample=False,
        ),
        vae=vae,
    )


def train_pipeline(encoder: Any, vae: Any, scenes: Scenes, seed: int, teach: Teach) -> Any:
    """Make the pipeline of its two trained models, and teach its U-Net to denoise latents, given the embeddings."""
    torch.manual_seed(seed)
    pipeline = assemble(encoder, vae)
    unet, scheduler = pipeline.unet, pipeline.scheduler
    with torch.no_grad():
        blocks = np.array_split(np.arange(len(scenes)), max(1, len(scenes) // 64))
        described = torch.cat([pipeline.image_encoder(pixels_of(scenes, block)).image_embeds for block in blocks])
        latents = torch.cat([_latents(pipeline.vae, scenes, block) for block in blocks])
        latents *= pipeline.vae.config.scaling_factor
        pipeline.image_normalizer.mean.copy_(described.mean(0, keepdim=True))
        pipeline.image_normalizer.std.copy_(described.std(0, keepdim=True))
    nothing = torch.zeros(32, 1, unet.config.cross_attention_dim)
    rng = np.random.default_rng(seed)

    def loss(step: int) -> Tensor:
        chosen = rng.integers(len(scenes), size=len(nothing))
        level = int(rng.integers(300)) if rng.random() < 0.3 else 0
        with torch.no_grad():
            given = pipeline.noise_image_embeddings(described[chosen], level)
            given[torch.rand(len(given)) < 0.05] = 0  # as guidance wants it
        noise = torch.randn_like(latents[chosen])
        times = torch.randint(scheduler.config.num_train_timesteps, (len(given),))
        signal = scheduler.alphas_cumprod[times].sqrt()[:, None, None, None]
        spread = (1 - signal**2).sqrt()
        noisy = signal * latents[chosen] + spread * noise
        drawn = unet(noisy, times, nothing, class_labels=given).sample
        return F.mse_loss(drawn, signal * noise - spread * latents[chosen])  # v of arXiv:2202.00512

    teach("U-Net", unet, loss, 1.5e-3)
    return pipeline


def _tokenizer() -> hf.CLIPTokenizer:
    """CLIP's tokenizer without merges: a token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return hf.CLIPTokenizer(vocab={entry: i for i, entry in enumerate(entries)}, merges=[], model_max_length=16)


_MEAN, _STD = (torch.tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))

_MADE = """`StableUnCLIPImg2ImgPipeline` in three trainings on 12,000 scenes.

- The image encoder, a CLIP of four layers of width 128 with patches of 16 pixels, as the bottleneck of an auto-encoder:
  from its noisy embedding (128 numbers) a small network, thrown away later, draws colours and categories at 28 × 28
  places and tells which pairs of colour and shape are there. Then the embedding is shifted and scaled to mean 0 and
  standard deviation 1.
- The VAE, on pieces of the scenes at 56 × 56 pixels: 6 × 14 × 14 latents.
- The U-Net (v-prediction), given the embedding, at times noisy, and in 1 of 20 cases none.

Figures: 10 steps of DPM-Solver, no guidance. The text encoder is random and has no part in what is drawn."""
