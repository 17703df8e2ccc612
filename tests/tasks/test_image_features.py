"""Vision models that describe images: what they give equals the libraries' own, and no file is run."""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from innervision.checkpoints.identity import identify
from innervision.errors import InnerVisionError
from innervision.original.inception import PAPER_SQUASH, SQUASH, describe_as_paper
from innervision.targets.depth import DepthTarget
from innervision.tasks.image_features import InceptionTarget, load_image_features
from tiny_experts import save_random_inception, save_tiny_backbone, save_tiny_depth


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch_fidelity")
    return save_random_inception(tmp_path_factory.mktemp("inception") / "weights.pth")


def test_inception_features_are_torch_fidelitys(weights: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    target = load_image_features(f"inception={weights}", device="cpu")
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))
    image = noise(299, 299)  # the size at which nothing is resized
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    with torch.no_grad():
        [expected] = network(pixels)
    features = target.encode([image])
    assert features.shape == (1, 1, 2048)
    torch.testing.assert_close(features[:, 0], expected)
    assert (target.expert, target.revision) == identify(str(weights))


def half_pixel(levels: np.ndarray, side: int) -> np.ndarray:
    """Enlarge (h, w, C) bilinearly between pixel centres, clamped at the border, in float64."""
    places = (np.arange(side) + 0.5) * levels.shape[0] / side - 0.5
    low = np.floor(places).clip(0).astype(int)
    high = np.minimum(low + 1, levels.shape[0] - 1)
    part = (places - low).clip(0)[:, None, None]
    rows = levels[low] * (1 - part) + levels[high] * part
    part = part[:, 0][None]
    return rows[:, low] * (1 - part) + rows[:, high] * part


def test_paper_features_are_those_of_the_originals_pixels(weights: Path) -> None:
    """Lanczos to 256 pixels of 8 bits, to 299 between pixel centres, -1 to 1; the network is torch-fidelity's own."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    image = noise(150, 90)
    small = np.array(image.resize((256, 256), Image.Resampling.LANCZOS), dtype=np.float64)
    expected_input = torch.from_numpy(2 * half_pixel(small / 255, 299) - 1).float().permute(2, 0, 1)[None]
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))
    network.Conv2d_1a_3x3.register_forward_pre_hook(lambda layer, given: (expected_input,))
    [expected] = network(torch.zeros(1, 3, 299, 299, dtype=torch.uint8))

    target = load_image_features(f"inception={weights}", device="cpu")
    pixels = PAPER_SQUASH([image])
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (1, 3, 256, 256))
    features = describe_as_paper(target.module, pixels)
    assert features.shape == (1, 2048)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    other = target.encode(pixels)[:, 0]  # torch-fidelity's own range and resizing
    assert (other - expected).abs().max() > 0.02 * expected.std()  # and 50 times what is tolerated above


def test_weights_of_the_published_names_and_shapes_load(shared: Path, tmp_path: Path) -> None:
    shapes = json.loads((shared / "golden/metrics/inception_keys.json").read_text())
    state = {
        name: torch.tensor(0) if name.endswith("num_batches_tracked") else torch.rand(shape) / 100
        for name, shape in shapes.items()
    }
    torch.save(state, tmp_path / "weights.pth")
    target = InceptionTarget.load(str(tmp_path / "weights.pth"), device="cpu")
    loaded = target.module.state_dict()
    assert {name: list(tensor.shape) for name, tensor in loaded.items()} == shapes
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_images_of_any_size_are_squashed_with_antialiasing() -> None:
    images = [noise(640, 480), noise(50, 70)]
    pixels = SQUASH(images)
    assert pixels.shape == (2, 3, 299, 299)
    assert pixels.dtype == torch.uint8
    stripes = np.zeros((598, 598, 3), dtype=np.uint8)
    stripes[::2] = 255  # without antialiasing every row that is taken would be black, or every one white
    grey = SQUASH([Image.fromarray(stripes)])
    assert (grey[..., 2:-2, :].float() - 127.5).abs().max() < 2


class Harm:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path(harm_done),)


harm_done = ""


def test_a_file_of_weights_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "harm_done", str(tmp_path / "harm"))
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(InnerVisionError, match=r"cannot read .*weights\.pth as weights of Inception"):
        load_image_features(f"inception={tmp_path / 'weights.pth'}")
    assert not (tmp_path / "harm").exists()


def test_other_weights_and_missing_files_are_refused(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "broken.pth").write_bytes(b"PK" + bytes(500))
    for name in ("other.pth", "empty.pth", "broken.pth"):
        with pytest.raises(InnerVisionError, match=rf"cannot read .*{name}.*\n.*inception=PATH"):
            load_image_features(f"inception={tmp_path / name}")
    with pytest.raises(InnerVisionError, match=r"there is no file or folder .*missing\.pth"):
        load_image_features(f"inception={tmp_path / 'missing.pth'}")


def test_weights_are_downloaded_checked_and_only_read(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(url: str, **options: object) -> dict:
        asked.update(options, url=url)
        return torch.load(weights, weights_only=True)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    target = load_image_features("inception", device="cpu")
    assert asked["check_hash"]
    assert asked["weights_only"]
    assert asked["url"].endswith(f"{target.revision}.pth")


def test_weights_that_cannot_be_downloaded_say_what_else_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    with pytest.raises(InnerVisionError, match=r"cannot download .*no route to host\n.*inception=PATH, or another"):
        load_image_features("inception")


def test_inception_without_torch_fidelity_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(InnerVisionError, match=r"pip install 'innervision\[gen\]'"):
        load_image_features("inception")


POOLED: dict[str, Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]] = {
    "dinov2": lambda model, pixels: model(pixels).last_hidden_state[:, 0],  # CLS after the final LayerNorm
    "clip": lambda model, pixels: model.vision_model(pixels).pooler_output,
    "siglip": lambda model, pixels: model.vision_model(pixels).pooler_output,
    "swin": lambda model, pixels: model(pixels).last_hidden_state.mean(dim=1),
    "resnet": lambda model, pixels: model(pixels).last_hidden_state.mean(dim=(2, 3)),
}


@pytest.mark.parametrize("family", POOLED)
def test_vision_models_give_their_pooled_output(tmp_path: Path, family: str) -> None:
    folder = save_tiny_backbone(tmp_path, family=family)
    target = load_image_features(str(folder), device="cpu")
    image = noise(80, 60)
    model = hf.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        expected = POOLED[family](model, target.prepare([image]))
    torch.testing.assert_close(target.encode([image]).mean(dim=1), expected)


def test_experts_can_describe_images_too(tmp_path: Path) -> None:
    folder = save_tiny_depth(tmp_path)
    target = load_image_features(f"depth={folder}", device="cpu")
    assert isinstance(target, DepthTarget)


def test_unknown_model_is_refused() -> None:
    with pytest.raises(InnerVisionError, match="cannot load the expert nowhere/nothing"):
        load_image_features("nowhere/nothing")
