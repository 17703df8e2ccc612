"""Probe checkpoints of the original code become runs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from innervision import cli
from innervision.errors import InnerVisionError
from innervision.mllm import MLLM
from innervision.original.held_experts import HELD
from innervision.original.import_probes import read_probes, sort_keys
from innervision.original.protocol import PROTOCOLS
from innervision.probes import ProbeBank
from innervision.targets import load_targets

PROMPT = "Describe the image in two lines."
SETTINGS = {"depth": 1, "dim_head": 4, "num_heads": 2, "num_tokens": 576, "output_dim": 32, "ff_mult": 1}


@pytest.fixture
def copy(checkpoints: Path, tmp_path: Path) -> Path:
    """A depth checkpoint that a test may change, without the expert beside it."""
    folder = shutil.copytree(checkpoints / "probe_depth_tiny-llava-llama3", tmp_path / "probe")
    for path in Path(folder).iterdir():
        path.chmod(0o644)
    return Path(folder)


def imported(mode: str, checkpoints: Path) -> ProbeBank:
    return read_probes(str(checkpoints / f"probe_{mode}_tiny-llava-llama3")).bank


def as_tokens(golden: Tensor) -> Tensor:
    """Give the original's map (B, C, h, w) or tokens (B, N, C) as tokens."""
    return golden.flatten(2).transpose(1, 2) if golden.dim() == 4 else golden


@pytest.mark.parametrize("mode", ["depth", "seg"])
def test_predictions_losses_and_gradients_agree_with_the_original(mode: str, checkpoints: Path) -> None:
    golden = load_file(checkpoints / f"{mode}_forward.safetensors")
    bank = imported(mode, checkpoints)
    assert bank.layers == [1, 2, 3]
    unmasked = torch.ones_like(golden["attention_mask"], dtype=torch.bool)  # row 1 has padding, which is read
    total = torch.zeros(())
    for number, layer in enumerate(bank.layers):
        prediction = bank(layer, golden[f"hidden_states.{layer}"], unmasked)
        torch.testing.assert_close(prediction, as_tokens(golden[f"probe_pred.{number}"]), atol=1e-5, rtol=0)
        loss = F.smooth_l1_loss(prediction, as_tokens(golden["target"]))
        torch.testing.assert_close(loss, golden[f"layer_loss.{number}"].squeeze(), atol=1e-6, rtol=0)
        total = total + loss
    torch.testing.assert_close(total, golden["loss_total"].squeeze(), atol=1e-6, rtol=0)
    total.backward()
    gradients = {key: value for key, value in golden.items() if key.startswith("grad.")}
    assert len(gradients) == 18
    for key, expected in gradients.items():
        parameter = bank.probes["1"].get_parameter(key.split(".projector.")[1])
        torch.testing.assert_close(parameter.grad, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("mode", ["depth", "seg"])
def test_an_image_is_predicted_as_by_the_original(mode: str, checkpoints: Path) -> None:
    golden = load_file(checkpoints / f"{mode}_eval_image0_fp32.safetensors")
    bank = imported(mode, checkpoints).half().float()
    folder = str(checkpoints / f"probe_{mode}_tiny-llava-llama3")
    mllm = MLLM.load(folder, dtype=torch.float16, device="cpu")
    mllm.model.float()
    found: dict[int, Tensor] = {}
    inputs = mllm.prepare([Image.open(checkpoints / "image0.png").convert("RGB")], PROMPT)
    with torch.no_grad():
        mllm.visit(inputs, lambda layer, x, mask: found.update({layer: bank(layer, x, mask)}), bank.layers)
    for number, layer in enumerate(bank.layers):
        expected = as_tokens(golden[f"{mode}_embs.{number}"])
        torch.testing.assert_close(found[layer], expected, atol=1e-4, rtol=0)


def test_settings_and_record_say_where_probes_come_from(checkpoints: Path) -> None:
    found = read_probes(str(checkpoints / "probe_depth_tiny-llava-llama3"))
    settings, record = found.settings, found.record
    assert (settings.protocol, settings.layers) == ("paper", "decoder")
    assert settings.targets == f"depth={(checkpoints / 'tiny_dav2.pth').resolve()}"
    assert (settings.probe.heads, settings.probe.dim_head) == (2, 4)
    assert record["imported"]["checkpoint"] == "probe_depth_tiny-llava-llama3"
    assert record["mllm"]["num_layers"] == 3
    assert found.bank.mean.isnan().all()


@pytest.mark.parametrize("mode", ["depth", "seg"])
def test_probes_belong_to_the_models_that_the_settings_name(mode: str, checkpoints: Path, tmp_path: Path) -> None:
    folder = checkpoints / f"probe_{mode}_tiny-llava-llama3"
    found = read_probes(str(folder))
    holder = {"depth": checkpoints / "tiny_dav2.pth", "seg": folder}[mode]  # what lies beside goes before what it holds
    assert found.settings.targets == f"{mode}={holder.resolve()}"
    found.bank.save(tmp_path / "bank.safetensors")
    [target] = load_targets([found.settings.targets], device="cpu")
    ProbeBank.load(tmp_path / "bank.safetensors").check(MLLM.load(found.settings.mllm, device="cpu"), target)


def test_the_mean_feature_is_that_of_the_images_given(checkpoints: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    pictures = [Image.open(checkpoints / f"image{number}.png").convert("RGB") for number in (0, 1)]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"images/{number}.png")
    found = read_probes(
        str(checkpoints / "probe_depth_tiny-llava-llama3"), images=str(tmp_path / "images"), device="cpu"
    )
    [target] = load_targets([found.settings.targets], device="cpu")
    assert not torch.allclose(found.bank.mean, target.encode(pictures).mean(dim=0), atol=1e-2)
    PROTOCOLS["paper"].adopt(target)  # as for the features that the probes are scored against
    torch.testing.assert_close(found.bank.mean, target.encode(pictures).mean(dim=0), atol=1e-6, rtol=0)


def test_the_command_line_imports(
    checkpoints: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    assert cli.main(["import", str(checkpoints / "probe_depth_tiny-llava-llama3"), "--out", out]) == 0
    printed = capsys.readouterr().out
    assert "no mean feature" in printed
    assert "next: innervision evaluate" in printed
    assert cli.main(["import", str(checkpoints / "probe_depth_tiny-llava-llama3"), "--out", out]) == 1
    assert "holds something already" in capsys.readouterr().err


def test_a_checkpoint_without_its_expert_beside_it_uses_the_one_it_holds(copy: Path) -> None:
    settings = read_probes(str(copy)).settings
    assert settings.targets == f"depth={copy.resolve()}"
    [target] = load_targets([settings.targets], device="cpu")
    assert (target.num_tokens, target.width) == (576, 32)


def change(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probe_mode": "pose"}, "probe_mode in its config.json is pose, not depth, seg or gen"),
        ({"probe_mode": "seg", "image_seg": SETTINGS}, r"\(probe_mode=seg\) holds 54 unknown tensors: image_depth_h"),
        ({"image_depth": {}}, "lacks depth, dim_head, num_heads, num_tokens, output_dim, ff_mult in image_depth"),
        ({"num_hidden_layers": 2}, r"holds 18 tensors too many: image_depth_heads\.2\."),
        ({"num_hidden_layers": 4}, r"lacks 18 tensors: image_depth_heads\.3\.projector\."),
        ({"image_depth": SETTINGS | {"num_tokens": 64}}, r"latents is \(1, 576, 32\), not \(1, 64, 32\)"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, object], message: str, copy: Path) -> None:
    change(copy, **changes)
    with pytest.raises(InnerVisionError, match=message):
        read_probes(str(copy))


def test_missing_and_unknown_tensors_are_named(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    gone = "image_depth_heads.1.projector.proj_in.bias"
    save_file({key: value for key, value in weights.items() if key != gone}, copy / "model.safetensors")
    with pytest.raises(InnerVisionError, match=f"lacks 1 tensors: {gone}"):
        read_probes(str(copy))
    save_file(weights | {"other.weight": torch.zeros(1)}, copy / "model.safetensors")
    with pytest.raises(InnerVisionError, match=r"1 unknown tensors: other\.weight"):
        read_probes(str(copy))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_probes_that_are_not_finite_are_refused_by_name(value: float, copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["image_depth_heads.1.projector.proj_in.bias"][3] = value
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(
        InnerVisionError, match=r"1 tensors that are not finite: image_depth_heads\.1\.projector\.proj_in"
    ):
        read_probes(str(copy))


def test_a_base_model_and_a_folder_of_something_else_are_refused(checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(InnerVisionError, match=r"probe_mode in its config\.json is None"):
        read_probes(str(checkpoints / "base-tiny-llava-llama3"))
    with pytest.raises(InnerVisionError, match="is no probe checkpoint"):
        read_probes(str(tmp_path))


def published(shared: Path, mode: str) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Names and shapes of a checkpoint of Llama-3-8B size: of the probes, and of all else that is listed."""
    sizes = json.loads((shared / "golden/misc/published_size_keys.json").read_text())[mode]
    probes = {
        key.replace(f"image_{mode}_heads.0.", f"image_{mode}_heads.{number}."): shape
        for number in range(32)
        for key, shape in sizes["head0"].items()
    }
    return probes, sizes["non_head_keys"]


@pytest.mark.parametrize("mode", list(HELD))
def test_every_tensor_of_a_published_checkpoint_is_used_or_known(mode: str, shared: Path) -> None:
    probes, others = published(shared, mode)
    used, unknown = sort_keys([*probes, *others], mode)
    assert set(used.values()) == set(probes)
    assert unknown == []


def test_every_tensor_of_the_tower_and_of_the_tasks_is_known(shared: Path) -> None:
    tower = json.loads((shared / "golden/misc/convnext_xxlarge.json").read_text())["trunk_keys"]
    tasks = [f"model.special_{target}_tokens" for target in HELD]
    assert sort_keys([*tower, *tasks], "depth") == ({}, [])


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_published_checkpoint_is_imported_at_full_size_without_reading_the_rest(
    kind: str, shared: Path, tmp_path: Path
) -> None:
    """One shard holds two probes of full size, the other shards are not even there."""
    mode, layers = "gen", 2
    probes, others = published(shared, mode)
    probes = {key: shape for key, shape in probes.items() if int(key.split(".")[1]) < layers}
    folder = tmp_path / f"probe.{kind}"
    folder.mkdir()
    index, shard = {
        "safetensors": ("model.safetensors.index.json", "model-00007-of-00007.safetensors"),
        "bin": ("pytorch_model.bin.index.json", "pytorch_model-00007-of-00007.bin"),
    }[kind]
    weights = {key: torch.full(shape, 0.5, dtype=torch.bfloat16) for key, shape in probes.items()}
    (save_file if kind == "safetensors" else torch.save)(weights, folder / shard)
    files = dict.fromkeys(probes, shard) | dict.fromkeys(others, shard.replace("00007-of", "00001-of"))
    (folder / index).write_text(json.dumps({"weight_map": files}))
    config = {
        "model_type": "probe_dsg_llava_llama",
        "probe_mode": mode,
        "num_hidden_layers": layers,
        "hidden_size": 4096,
        "image_generator": "stabilityai/stable-diffusion-2-1-unclip",
        "image_gen": {"depth": 1, "dim_head": 32, "num_heads": 4, "num_tokens": 1, "output_dim": 1024, "ff_mult": 1},
    }
    (folder / "config.json").write_text(json.dumps(config))
    found = read_probes(str(folder))
    probes_read = found.bank.probes.state_dict()
    assert sum(value.numel() for value in probes_read.values()) == layers * 7_875_584
    assert all(bool((value == 0.5).all()) for value in probes_read.values())
    assert found.record["parameters"] == {mode: layers * 7_875_584}
    assert found.settings.targets == "gen=sd2-community/stable-diffusion-2-1-unclip"  # the one named is gone
