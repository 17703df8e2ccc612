"""Loading targets, and what all of them have in common."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from innervision.checkpoints.identity import fingerprint
from innervision.errors import InnerVisionError
from innervision.targets import load_targets
from innervision.targets.target import Target
from tiny_experts import save_tiny_backbone, save_tiny_depth, save_tiny_gen, save_tiny_seg

NoiseImage = Callable[..., Image.Image]
KINDS = ("depth", "seg", "gen", "backbone")
WEIGHTS = {"gen": "image_encoder/model.safetensors"}
CONFIG = {"gen": "image_encoder/config.json"}
NEEDED = {
    "depth": "backbone.layernorm.weight",
    "seg": "model.pixel_level_module.encoder.hidden_states_norms.stage4.bias",
    "gen": "visual_projection.weight",
    "backbone": "encoder.layer.1.mlp.fc2.bias",
}
"""A weight that the features depend on, by its name in the file."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("experts")
    return {
        "depth": save_tiny_depth(root / "depth"),
        "seg": save_tiny_seg(root / "seg"),
        "gen": save_tiny_gen(root / "gen"),
        "backbone": save_tiny_backbone(root / "backbone"),
    }


@pytest.fixture(scope="module")
def targets(folders: dict[str, Path]) -> dict[str, Target]:
    return {t.name: t for t in load_targets([f"{kind}={folders[kind]}" for kind in KINDS])}


@pytest.fixture
def broken(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A function that copies an expert's folder to be broken."""
    return lambda kind: Path(shutil.copytree(folders[kind], tmp_path / kind))


def test_order_is_kept_and_names_and_folders_are_known(targets: dict[str, Target], folders: dict[str, Path]) -> None:
    assert tuple(targets) == KINDS
    assert [t.expert for t in targets.values()] == [folders[kind].name for kind in KINDS]
    assert [t.revision for t in targets.values()] == [fingerprint(folders[kind]) for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS)
class TestEveryTarget:
    def test_features_have_the_shape_it_says(self, targets: dict[str, Target], noise: NoiseImage, kind: str) -> None:
        target = targets[kind]
        features = target.encode([noise(90, 40), noise(30, 70), noise(64, 64)])
        assert features.shape == (3, target.num_tokens, target.width)
        assert features.dtype == torch.float32
        assert not features.requires_grad

    def test_batch_gives_what_single_images_give(
        self, targets: dict[str, Target], noise: NoiseImage, kind: str
    ) -> None:
        images = [noise(90, 40), noise(30, 70, seed=1)]
        batch = targets[kind].encode(images)
        single = torch.cat([targets[kind].encode([image]) for image in images])
        torch.testing.assert_close(batch, single, atol=1e-5, rtol=1e-5)
        assert (batch[0] - batch[1]).abs().max() > 0.05

    def test_prepared_pixels_give_the_same_features(
        self, targets: dict[str, Target], noise: NoiseImage, kind: str
    ) -> None:
        images = [noise(90, 40)]
        pixels = targets[kind].prepare(images)
        assert (pixels.dtype, pixels.device.type, pixels.ndim) == (torch.float32, "cpu", 4)
        torch.testing.assert_close(targets[kind].encode(pixels), targets[kind].encode(images), atol=0, rtol=0)

    def test_preparer_goes_to_a_worker_without_weights(
        self, targets: dict[str, Target], noise: NoiseImage, kind: str
    ) -> None:
        assert len(pickle.dumps(targets[kind].preparer)) < 10_000
        images = [noise(90, 40), noise(30, 70)]
        loader = DataLoader(images, 2, num_workers=1, collate_fn=targets[kind].preparer)
        torch.testing.assert_close(next(iter(loader)), targets[kind].prepare(images), atol=0, rtol=0)

    def test_image_processor_and_its_backend_are_named(self, targets: dict[str, Target], kind: str) -> None:
        name = {"depth": "DPT", "seg": "OneFormer", "gen": "CLIP", "backbone": "Bit"}[kind]
        assert targets[kind].processor_name == f"{name}ImageProcessor (torchvision)"

    def test_is_frozen(self, targets: dict[str, Target], kind: str) -> None:
        target = targets[kind]
        target.train()
        assert not any(module.training for module in target.modules())
        assert not any(parameter.requires_grad for parameter in target.parameters())

    @pytest.mark.usefixtures("plain_attention")
    def test_bfloat16_is_close_and_comes_as_float32(
        self, targets: dict[str, Target], folders: dict[str, Path], noise: NoiseImage, kind: str
    ) -> None:
        reduced = type(targets[kind]).load(str(folders[kind]), dtype=torch.bfloat16)
        images = [noise(90, 40)]
        full, half = targets[kind].encode(images), reduced.encode(images)
        assert half.dtype == torch.float32
        relative = ((half - full).norm() / full.norm()).item()
        assert 1e-5 < relative < 0.03  # bfloat16 resolves 1/256

    def test_callers_autocast_does_not_reach_the_expert(
        self, targets: dict[str, Target], noise: NoiseImage, kind: str
    ) -> None:
        pixels = targets[kind].prepare([noise(90, 40)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = targets[kind].encode(pixels)
        torch.testing.assert_close(inside, targets[kind].encode(pixels), atol=0, rtol=0)

    def test_folder_without_weights_is_refused(self, broken: Callable[[str], Path], kind: str) -> None:
        folder = broken(kind)
        (folder / WEIGHTS.get(kind, "model.safetensors")).unlink()
        with pytest.raises(InnerVisionError, match=r"cannot load the expert .*no file named model"):
            load_targets([f"{kind}={folder}"])

    def test_weights_of_something_else_are_refused(self, broken: Callable[[str], Path], kind: str) -> None:
        folder = broken(kind)
        other = {"something": torch.zeros(200_000)}
        save_file(other, folder / WEIGHTS.get(kind, "model.safetensors"), metadata={"format": "pt"})
        with pytest.raises(InnerVisionError, match=rf"does not hold \d\d+ of the weights that {kind} needs"):
            load_targets([f"{kind}={folder}"])

    def test_one_missing_weight_is_refused(self, broken: Callable[[str], Path], kind: str) -> None:
        folder = broken(kind)
        _edit_weights(folder / WEIGHTS.get(kind, "model.safetensors"), lambda w: w.pop(NEEDED[kind]))
        with pytest.raises(InnerVisionError, match=rf"does not hold 1 of the weights that {kind} needs"):
            load_targets([f"{kind}={folder}"])

    def test_weight_of_another_shape_is_refused(self, broken: Callable[[str], Path], kind: str) -> None:
        folder = broken(kind)
        _edit_weights(
            folder / WEIGHTS.get(kind, "model.safetensors"),
            lambda weights: weights.update({NEEDED[kind]: torch.zeros(3)}),
        )
        with pytest.raises(InnerVisionError, match=rf"does not hold 1 of the weights that {kind} needs"):
            load_targets([f"{kind}={folder}"])

    def test_cut_file_is_refused(self, broken: Callable[[str], Path], kind: str) -> None:
        folder = broken(kind)
        file = folder / WEIGHTS.get(kind, "model.safetensors")
        whole = file.read_bytes()
        for size, said in ((len(whole) - 1000, "cannot load the expert"), (1000, "more than its files of 1,000 bytes")):
            file.write_bytes(whole[:size])
            with pytest.raises(InnerVisionError, match=said):
                load_targets([f"{kind}={folder}"])

    def test_code_that_comes_with_an_expert_is_not_run(self, broken: Callable[[str], Path], kind: str) -> None:
        folder = broken(kind)
        file = folder / CONFIG.get(kind, "config.json")
        config = json.loads(file.read_text()) | {
            "model_type": "unheard-of",
            "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"},
        }
        file.write_text(json.dumps(config))
        (file.parent / "mine.py").write_text("raise SystemExit('code was run')")
        with pytest.raises(InnerVisionError, match="cannot load the expert"):
            load_targets([f"{kind}={folder}"])

    def test_expert_that_cannot_be_had_offline_is_named(self, kind: str) -> None:
        with pytest.raises(InnerVisionError, match="cannot load the expert no/such: there is no such folder") as caught:
            load_targets([f"{kind}=no/such"])
        assert len(str(caught.value).splitlines()) == 1

    def test_folder_that_does_not_exist_is_named(self, tmp_path: Path, kind: str) -> None:
        with pytest.raises(InnerVisionError, match=r"there is no file or folder .*/nowhere"):
            load_targets([f"{kind}={tmp_path}/nowhere"])


@pytest.mark.parametrize(
    ("kind", "other", "message"),
    [
        ("depth", "seg", "is a 'oneformer' model, but a 'depth_anything' model is needed"),
        ("seg", "depth", "is a 'depth_anything' model, but a 'oneformer' model is needed"),
        ("gen", "depth", "cannot load the expert"),
    ],
)
def test_model_of_the_wrong_class_is_refused(folders: dict[str, Path], kind: str, other: str, message: str) -> None:
    with pytest.raises(InnerVisionError, match=message):
        load_targets([f"{kind}={folders[other]}"])


def test_unneeded_missing_weight_does_no_harm(broken: Callable[[str], Path]) -> None:
    folder = broken("depth")
    _edit_weights(folder / "model.safetensors", lambda weights: weights.pop("head.conv1.weight"))
    assert load_targets([f"depth={folder}"])[0].num_tokens == 576


def test_missing_running_statistics_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_backbone(tmp_path, family="resnet")
    name = "embedder.embedder.normalization.running_var"
    _edit_weights(folder / "model.safetensors", lambda weights: weights.pop(name))
    with pytest.raises(InnerVisionError, match=name):
        load_targets([f"backbone={folder}"])


def test_revision_is_the_commit_in_the_cache(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    for kind in ("depth", "gen"):
        repository = tmp_path / f"models--tiny--{kind}"
        shutil.copytree(folders[kind], repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        for ref in ("main", "v1"):
            (repository / "refs" / ref).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    targets = load_targets(["depth=tiny/depth", "gen=tiny/gen@v1"])
    assert [(t.expert, t.revision) for t in targets] == [("tiny/depth", commit), ("tiny/gen", commit)]
    with pytest.raises(InnerVisionError, match="cannot load the expert tiny/depth"):
        load_targets(["depth=tiny/depth@v2"])


def _edit_weights(file: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(file)
    edit(weights)
    save_file(weights, file, metadata={"format": "pt"})
