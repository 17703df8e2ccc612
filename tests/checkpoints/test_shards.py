"""Single tensors of a checkpoint, whatever files it is made of."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from innervision.checkpoints.shards import Shards, check_types
from innervision.errors import InnerVisionError

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.ones(4, dtype=torch.float16), "b.d": torch.tensor(3.0)}


def write(folder: Path, kind: str) -> Path:
    """Write `WEIGHTS` as one of the kinds of checkpoints that Transformers saves."""
    suffix, single, index = {
        "safetensors": (".safetensors", "model.safetensors", "model.safetensors.index.json"),
        "bin": (".bin", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    }[kind.partition(" ")[0]]
    save = save_file if suffix == ".safetensors" else torch.save
    if "sharded" in kind:
        files = {key: f"part-{number}{suffix}" for number, key in enumerate(WEIGHTS)}
        for key, file in files.items():
            save({key: WEIGHTS[key]}, folder / file)
        (folder / index).write_text(json.dumps({"weight_map": files}))
    elif "old" in kind:
        torch.save(WEIGHTS, folder / single, _use_new_zipfile_serialization=False)
    else:
        save(WEIGHTS, folder / single)
    return folder


@pytest.mark.parametrize("kind", ["safetensors", "safetensors sharded", "bin", "bin sharded", "bin old"])
def test_reads_only_what_is_asked_for_from_every_kind_of_checkpoint(kind: str, tmp_path: Path) -> None:
    shards = Shards(str(write(tmp_path, kind)))
    assert set(shards.files) == set(WEIGHTS)
    assert shards.shapes(["a", "b.d"]) == {"a": (2, 3), "b.d": ()}
    read: dict[str, Tensor] = shards.read(["b.c", "b.d"])
    assert set(read) == {"b.c", "b.d"}
    assert all(torch.equal(read[key], WEIGHTS[key]) and read[key].dtype == WEIGHTS[key].dtype for key in read)


def test_shards_that_hold_nothing_of_what_is_asked_for_need_not_be_there(tmp_path: Path) -> None:
    shards = Shards(str(write(tmp_path, "safetensors sharded")))
    (tmp_path / "part-0.safetensors").unlink()
    assert torch.equal(shards.read(["b.c"])["b.c"], WEIGHTS["b.c"])
    with pytest.raises(InnerVisionError, match=r"lacks its file part-0\.safetensors"):
        shards.read(["a"])


def test_one_file_is_a_checkpoint(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "weights.pth")
    assert torch.equal(Shards(str(tmp_path / "weights.pth")).read(["a"])["a"], WEIGHTS["a"])


def test_an_index_cannot_lead_out_of_the_checkpoint(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "secret.safetensors")
    inside = tmp_path / "model"
    inside.mkdir()
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (inside / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InnerVisionError, match=r"outside of the checkpoint: \.\./secret"):
        Shards(str(inside))


def test_an_index_that_is_wrong_about_a_file_is_told_of(tmp_path: Path) -> None:
    shards = Shards(str(write(tmp_path, "safetensors sharded")))
    shards.files["a"] = shards.files["b.c"]
    with pytest.raises(InnerVisionError, match="does not hold a, which the index puts there"):
        shards.read(["a"])


class Payload:
    """Would write a file if a pickle of it were executed."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (Path("executed"),)


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Payload()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InnerVisionError, match="cannot be read as a file of weights"):
        Shards(str(tmp_path))
    assert not Path("executed").exists()


def test_broken_and_empty_checkpoints_are_told_of(tmp_path: Path) -> None:
    with pytest.raises(InnerVisionError, match="holds no weights"):
        Shards(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InnerVisionError, match="cannot be read as a file of weights"):
        Shards(str(tmp_path))


class Part(torch.nn.Module):
    """A model with weights and an index."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))
        self.register_buffer("position_ids", torch.arange(4))


@pytest.mark.parametrize("subfolder", ["", "unet"])
@pytest.mark.parametrize("file", ["model.safetensors", "diffusion_pytorch_model.safetensors"])
def test_weights_stored_as_whole_numbers_are_refused_and_indices_are_not(
    file: str, subfolder: str, tmp_path: Path
) -> None:
    folder = tmp_path / subfolder
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file({"x.weight": torch.ones(4), "x.position_ids": torch.arange(4)}, folder / file)
    check_types(Part(), str(tmp_path), subfolder=subfolder)
    save_file({"x.weight": torch.ones(4, dtype=torch.int8), "x.position_ids": torch.arange(4)}, folder / file)
    with pytest.raises(InnerVisionError, match=r"stores weights as int8, .*: x\.weight"):
        check_types(Part(), str(tmp_path), subfolder=subfolder)


@pytest.mark.parametrize(("method", "refused"), [("fp8", False), ("gptq", False), ("unheard-of", True)])
@pytest.mark.parametrize("part", ["", "text_config"])
def test_a_checkpoint_says_how_it_is_quantized(method: str, refused: bool, part: str, tmp_path: Path) -> None:
    settings = {"quantization_config": {"quant_method": method}}
    (tmp_path / "config.json").write_text(json.dumps({part: settings} if part else settings))
    save_file({"weight": torch.ones(4).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    if refused:  # Transformers would warn, and load the numbers as they are
        with pytest.raises(InnerVisionError, match="float8_e4m3fn"):
            check_types(Part(), str(tmp_path))
    else:
        check_types(Part(), str(tmp_path))
