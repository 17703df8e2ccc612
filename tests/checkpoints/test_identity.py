"""Which folder or commit a name stands for."""

from pathlib import Path

import pytest

from innervision.checkpoints import identity
from innervision.checkpoints.identity import fingerprint, identify, locate
from innervision.errors import InnerVisionError
from innervision.mllm import MLLM
from innervision.targets import load_targets
from tiny_experts import save_tiny_depth
from tiny_mllms import save_tiny


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(identity, "MODELS", tmp_path)
    (tmp_path / "depth").mkdir()
    (tmp_path / ".scenes").mkdir()
    (tmp_path / "card.md").touch()
    return tmp_path


def test_a_model_of_the_package_is_found_and_other_names_are_left_alone(models: Path) -> None:
    assert locate("world/depth") == str(models / "depth")
    for name in ("depth", "./world/depth", "llava-hf/llava-1.5-7b-hf", "world", str(models / "depth")):
        assert locate(name) == name


@pytest.mark.parametrize(
    "name", ["world/nothing", "world/", "world/..", "world/depth/..", "world/.scenes", "world/card.md"]
)
def test_the_error_lists_the_models_that_there_are(models: Path, name: str) -> None:
    with pytest.raises(InnerVisionError, match=r"there are: world/depth\n"):
        locate(name)


def test_loaders_take_the_name_and_keep_it_with_the_folders_fingerprint(models: Path) -> None:
    save_tiny("llava", models / "tuned")
    save_tiny_depth(models / "depth")
    mllm = MLLM.load("world/tuned", device="cpu")
    assert (mllm.name, mllm.revision) == ("world/tuned", fingerprint(models / "tuned"))
    (target,) = load_targets(["depth=world/depth"], device="cpu")
    assert (target.expert, target.revision) == ("world/depth", fingerprint(models / "depth"))
    assert identify(str(models / "depth")) == ("depth", target.revision)
