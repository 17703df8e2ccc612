"""Parts of models are loaded without questions, and whatever goes wrong is one line."""

import json
from pathlib import Path

import pytest
import torch
from transformers.dynamic_module_utils import resolve_trust_remote_code

from innervision.checkpoints.loading import check_files, check_finite, check_layers, loading
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
