"""The generation target: the image embedding of Stable unCLIP."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file

from innervision.config import DrawSettings
from innervision.errors import InnerVisionError
from innervision.targets.gen import GenTarget
from innervision.targets.target import Context, Preparer
from tiny_experts import save_tiny_gen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_gen(tmp_path_factory.mktemp("gen"))


@pytest.fixture(scope="module")
def target(folder: Path) -> GenTarget:
    return GenTarget.load(str(folder))


def test_embedding_is_the_pipelines(tmp_path: Path, noise: Callable[..., Image.Image]) -> None:
    diffusers = pytest.importorskip("diffusers")
    folder = save_tiny_gen(tmp_path, whole=True)
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline.from_pretrained(folder)
    images = [noise(56, 56), noise(56, 56)]  # the size at which the pipeline crops nothing
    pixels = pipeline.feature_extractor(images=images, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = pipeline.image_encoder(pixels).image_embeds  # as in its `_encode_image`

    features = GenTarget.load(str(folder)).encode(images)

    assert features.shape == (2, 1, 24)
    torch.testing.assert_close(features[:, 0], expected)


def test_full_size_shape_and_parameters() -> None:
    config = hf.CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        projection_dim=1024,
    )
    with torch.device("meta"):
        target = GenTarget(hf.CLIPVisionModelWithProjection(config), Preparer(hf.CLIPImageProcessor(), 224, 224))
        features = target.encode(torch.zeros(2, 3, 224, 224))
    assert features.shape == (2, 1, 1024)
    assert (target.num_tokens, target.width) == (1, 1024)
    assert sum(p.numel() for p in target.parameters()) == 632_076_800  # OpenCLIP ViT-H/14, visual part


def test_whole_image_is_squashed_and_not_cropped(
    folder: Path, target: GenTarget, noise: Callable[..., Image.Image]
) -> None:
    images = [noise(150, 60), noise(40, 90)]
    processor = hf.CLIPImageProcessor.from_pretrained(folder / "feature_extractor")
    expected = processor(
        images, size={"height": 56, "width": 56}, do_center_crop=False, return_tensors="pt"
    ).pixel_values
    torch.testing.assert_close(target.prepare(images), expected, atol=0, rtol=0)


def test_loads_without_diffusers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, noise: Callable[..., Image.Image]
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)  # any import of it fails
    assert GenTarget.load(str(folder)).encode([noise(30, 30)]).shape == (1, 1, 24)


def test_size_that_the_encoder_does_not_take_is_refused(folder: Path) -> None:
    with pytest.raises(InnerVisionError, match=r"takes 56 × 56 pixels, not 70 × 70"):
        GenTarget.load(str(folder), size=70)


def test_folder_without_image_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "feature_extractor", tmp_path / "feature_extractor")
    with pytest.raises(InnerVisionError, match="cannot load the expert"):
        GenTarget.load(str(tmp_path))


def test_folder_without_feature_extractor_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "image_encoder", tmp_path / "image_encoder")
    with pytest.raises(InnerVisionError, match="cannot load the expert"):
        GenTarget.load(str(tmp_path))


# --- images drawn from embeddings


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers")
    return save_tiny_gen(tmp_path_factory.mktemp("unclip"), whole=True)


@pytest.fixture
def artist(whole_folder: Path) -> GenTarget:
    return GenTarget.load(str(whole_folder), device="cpu", head=True).drawing(DrawSettings(steps=3, size=16))


def embeddings(images: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(images, 1, 24, generator=torch.Generator().manual_seed(seed))


def draw(target: GenTarget, features: torch.Tensor, seeds: list[int]) -> torch.Tensor:
    return target.decode(features, Context(features), seeds=seeds)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"guidance": 1.0},
        {"noise_level": 400},
        {"scheduler": "EulerDiscreteScheduler"},
        {"scheduler": "EulerAncestralDiscreteScheduler"},  # which adds noise at every step
    ],
)
def test_images_are_those_of_the_whole_pipeline(whole_folder: Path, artist: GenTarget, changes: dict) -> None:
    import diffusers

    artist = artist.drawing(DrawSettings(**{"steps": 3, "size": 16, **changes}))
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline.from_pretrained(whole_folder)
    pipeline.scheduler = getattr(diffusers, artist.draw.scheduler).from_config(pipeline.scheduler.config)
    features, seeds = embeddings(3), [5, 6, 2**32 - 1]
    expected = pipeline(
        prompt=[""] * 3,
        image_embeds=features[:, 0],
        num_inference_steps=3,
        height=16,
        width=16,
        guidance_scale=artist.draw.guidance,
        noise_level=artist.draw.noise_level,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="pt",
    ).images
    images = draw(artist, features, seeds)
    assert images.shape == (3, 3, 16, 16)
    assert 0 <= images.min() < images.max() <= 1
    torch.testing.assert_close(images, expected)


@pytest.mark.parametrize("scheduler", ["DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"])
def test_image_depends_on_its_embedding_and_seed_alone(artist: GenTarget, scheduler: str) -> None:
    artist = artist.drawing(DrawSettings(steps=3, size=16, scheduler=scheduler, noise_level=200))
    features, seeds = embeddings(5), [10, 11, 12, 13, 14]
    together = draw(artist, features, seeds)
    order = [3, 0, 4, 2, 1]
    reordered = draw(artist, features[order], [seeds[i] for i in order])
    torch.testing.assert_close(reordered, together[order])
    alone = torch.cat([draw(artist, features[i : i + 1], seeds[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(alone, together)
    changed = draw(artist, features, [0, *seeds[1:]]) - together
    assert (changed.abs().amax(dim=(1, 2, 3)) > 0.01).tolist() == [True, False, False, False, False]
    artist = artist.drawing(DrawSettings(steps=3, size=16, scheduler=scheduler, noise_level=200, seed=1))
    assert ((draw(artist, features, seeds) - together).abs().amax(dim=(1, 2, 3)) > 0.01).all()


def test_other_settings_do_not_reach_who_shares_the_weights(artist: GenTarget) -> None:
    other = artist.drawing(DrawSettings(steps=1, size=24))
    assert (artist.draw.size, other.draw.size) == (16, 24)
    assert draw(artist, embeddings(1), [0]).shape == (1, 3, 16, 16)
    assert draw(other, embeddings(1), [0]).shape == (1, 3, 24, 24)
    assert other.head is artist.head
    assert GenTarget.draw == DrawSettings()


def test_noise_on_the_embedding_is_seeded_too(artist: GenTarget) -> None:
    artist = artist.drawing(DrawSettings(steps=2, size=16, noise_level=900))
    features = embeddings(1)
    torch.testing.assert_close(draw(artist, features, [1]), draw(artist, features, [1]), rtol=0, atol=0)


def test_size_is_the_models_own_where_none_is_named(artist: GenTarget) -> None:
    artist = artist.drawing(DrawSettings(steps=1, guidance=1.0))
    assert draw(artist, embeddings(1), [0]).shape == (1, 3, 64, 64)


def test_only_what_drawing_needs_stays_in_memory(whole_folder: Path, artist: GenTarget) -> None:
    import diffusers

    pipeline = diffusers.StableUnCLIPImg2ImgPipeline.from_pretrained(whole_folder)
    needed = [pipeline.image_encoder, pipeline.unet, pipeline.vae.decoder, pipeline.vae.post_quant_conv]
    count = sum(p.numel() for part in needed for p in part.parameters()) + 2 * 24  # mean and deviation of embeddings
    assert sum(p.numel() for p in artist.parameters()) == count
    assert artist.head is not None
    assert artist.head.pipeline.image_encoder is artist.module


def test_settings_that_do_not_fit_the_model_are_refused(artist: GenTarget) -> None:
    artist = artist.drawing(DrawSettings(steps=1, size=20))
    with pytest.raises(InnerVisionError, match="divisible by 8 but are 20"):
        draw(artist, embeddings(1), [0])
    artist = artist.drawing(DrawSettings(steps=1, noise_level=1000))
    with pytest.raises(InnerVisionError, match="between 0 and 999"):
        draw(artist, embeddings(1), [0])
    artist = artist.drawing(DrawSettings(steps=1, scheduler="Magic"))
    with pytest.raises(InnerVisionError, match=r"no scheduler 'Magic'; use one of .*DDIMScheduler"):
        draw(artist, embeddings(1), [0])


@pytest.mark.parametrize(
    ("part", "weight"),
    [
        ("unet", "conv_in.weight"),
        ("vae", "decoder.conv_in.weight"),
        ("image_normalizer", "std"),
        ("text_encoder", "text_model.final_layer_norm.weight"),
    ],
)
def test_pipeline_that_lacks_weights_is_refused(whole_folder: Path, tmp_path: Path, part: str, weight: str) -> None:
    folder = shutil.copytree(whole_folder, tmp_path / "unclip")
    [path] = (folder / part).glob("*.safetensors")
    state = load_file(path)
    name = next(key for key in state if key.endswith(weight.removeprefix("text_model.")))
    save_file({key: value for key, value in state.items() if key != name}, path, metadata={"format": "pt"})
    with pytest.raises(InnerVisionError, match=rf"does not hold 1 weights of its {part} \(one is .*{name}"):
        GenTarget.load(str(folder), device="cpu", head=True)


def test_folder_without_the_rest_of_the_pipeline_cannot_draw(folder: Path) -> None:
    with pytest.raises(InnerVisionError, match="cannot load the expert"):
        GenTarget.load(str(folder), device="cpu", head=True)


def test_drawing_without_diffusers_says_what_to_install(whole_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InnerVisionError, match=r"pip install 'innervision\[gen\]'"):
        GenTarget.load(str(whole_folder), device="cpu", head=True)
