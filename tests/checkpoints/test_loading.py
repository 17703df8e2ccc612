"""Parts of models are loaded without questions, and whatever goes wrong is one line."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers.dynamic_module_utils import resolve_trust_remote_code

from innervision.checkpoints.loading import check_files, check_finite, check_layers, check_size, loading, require_real
from innervision.errors import InnerVisionError


def test_nobody_is_asked_whether_to_run_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_: str) -> str:
        pytest.fail("asked at the terminal")

    monkeypatch.setattr("builtins.input", answer)
    with pytest.raises(InnerVisionError, match="brings code of its own, which is not run"), loading("MLLM", "a/b"):
        resolve_trust_remote_code(None, "a/b", has_local_code=False, has_remote_code=True)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "memory does not suffice"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "memory does not suffice"),
        (ZeroDivisionError("by zero"), "does not hold what it should"),
        (RecursionError(), "nested too deeply"),
        (EOFError(), "empty or cut off"),
        (KeyError("width"), "does not hold what it should"),
        (ValueError("first\nsecond"), "first$"),
        (ValueError("a field is wrong:\n  it is 3\nhelp"), "a field is wrong: it is 3$"),
        (OSError("no connection"), "there is no such folder, nor a model on the Hub"),
    ],
)
def test_what_a_library_raises_is_one_line(error: Exception, said: str) -> None:
    with pytest.raises(InnerVisionError, match=said) as caught, loading("expert", "a/b"):
        raise error
    assert str(caught.value).startswith("cannot load the expert a/b: ")
    assert "\n" not in str(caught.value)


def test_files_that_would_fill_the_memory_are_refused_by_their_size(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no room
    with pytest.raises(InnerVisionError, match=r"tokenizer\.json is too large"):
        check_files(str(tmp_path))


@pytest.mark.parametrize("config", [{"num_hidden_layers": 10**6}, {"a": {"depths": [2, 10**6]}}])
def test_an_absurd_number_of_layers_is_refused(config: dict) -> None:
    check_layers(json.loads(json.dumps(config).replace("1000000", "80")), "m")
    with pytest.raises(InnerVisionError, match="=1000000, which no model has"):
        check_layers(config, "m")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_named(value: float, dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(2, 2).to(dtype)
    check_finite(layer, "m")
    layer.weight.data[0, 1] = value
    with pytest.raises(InnerVisionError, match="m has weights that are not finite, in weight"):
        check_finite(layer, "m")


def test_statistics_that_are_not_finite_are_named_and_what_no_file_holds_is_not() -> None:
    norm = torch.nn.BatchNorm1d(2)
    norm.register_buffer("mask", torch.full((2,), -torch.inf), persistent=False)
    check_finite(norm, "m")
    norm.running_var[0] = torch.nan
    with pytest.raises(InnerVisionError, match="not finite, in running_var"):
        check_finite(norm, "m")


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "vocab.txt", "a.model", "t.jinja", "x/a.json"]
)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_would_be_read_for_ever_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(InnerVisionError, match=f"{name} is not a regular file"):
        check_files(str(tmp_path))


def test_links_to_files_and_other_kinds_of_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("{}")
    (tmp_path / "config.json").symlink_to("blob")  # as the Hub's cache has them
    os.mkfifo(tmp_path / "notes")
    check_files(str(tmp_path))


def test_a_configuration_may_ask_for_as_many_weights_as_its_files_can_hold(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(50))
    check_size(lambda: torch.nn.Linear(10, 10, bias=False), tmp_path, "m")  # 100 weights of 4 bits
    with pytest.raises(
        InnerVisionError, match=r"m asks for 1,000,000,000,000 weights, more than its files of 50 bytes"
    ):
        check_size(lambda: torch.nn.Linear(10**6, 10**6, bias=False), tmp_path, "m")


def test_what_size_is_not_known_or_what_cannot_be_built_is_left_to_the_library(tmp_path: Path) -> None:
    check_size(lambda: torch.nn.Linear(10**6, 10**6), "org/on-the-hub", "m")
    check_size(lambda: torch.nn.Linear(10**6, 10**6), tmp_path, "m")  # holds no weights, which is told elsewhere
    (tmp_path / "a.bin").write_bytes(bytes(50))
    check_size(lambda: torch.nn.Linear(-1, 2), tmp_path, "m")


OTHER_TYPES = [
    torch.int8,
    torch.uint8,
    torch.int64,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


@pytest.mark.parametrize("dtype", OTHER_TYPES)
def test_weights_that_are_no_real_numbers_of_16_bits_are_refused(dtype: torch.dtype) -> None:
    real = {"a": torch.float16, "b": torch.bfloat16, "c": torch.float32, "d": torch.float64}
    require_real(real, "m")
    with pytest.raises(InnerVisionError, match=f"m stores weights as {str(dtype)[6:]}, where .* are needed: e\n"):
        require_real({**real, "e": dtype}, "m")
