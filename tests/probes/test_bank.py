"""A bank's file: what it keeps, and what it refuses."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from innervision.config import ProbeSettings
from innervision.errors import InnerVisionError
from innervision.probes import ProbeBank, read_metadata


@dataclass(frozen=True)
class SomeMLLM:
    name: str = "some/mllm"
    revision: str | None = "abc"
    num_layers: int = 3
    hidden_size: int = 8

    def width(self, layer: int) -> int:
        return 6 if layer == -1 else self.hidden_size


@dataclass(frozen=True)
class SomeTarget:
    name: str = "depth"
    expert: str = "some/expert"
    revision: str | None = None
    num_tokens: int = 4
    width: int = 5


SETTINGS = ProbeSettings(dim_head=2, heads=2)


def saved(tmp_path: Path, **options: object) -> Path:
    bank = ProbeBank(SomeMLLM(), SomeTarget(), [-1, 0, 3], SETTINGS, seed=1)
    bank.mean.copy_(torch.arange(20.0).view(4, 5))
    bank.save(tmp_path / "depth.safetensors", {"prompt": "Describe."})
    return tmp_path / "depth.safetensors"


def test_a_saved_bank_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = ProbeBank(SomeMLLM(), SomeTarget(), [-1, 0, 3], SETTINGS, seed=1)
    after = ProbeBank.load(path, SomeMLLM(), SomeTarget())
    assert after.layers == [-1, 0, 3]
    for layer in after.layers:
        states, mask = torch.randn(2, 7, SomeMLLM().width(layer)), torch.ones(2, 7, dtype=torch.bool)
        assert torch.equal(before(layer, states, mask), after(layer, states, mask))
    assert torch.equal(after.mean, torch.arange(20.0).view(4, 5))


def test_metadata_says_what_the_bank_belongs_to(tmp_path: Path) -> None:
    facts = read_metadata(saved(tmp_path))
    assert facts["mllm"] == "some/mllm"
    assert facts["expert"] == "some/expert"
    assert facts["layers"] == [-1, 0, 3]
    assert facts["num_tokens"] == 4
    assert facts["prompt"] == "Describe."
    assert facts["probe"]["kind"] == "resampler"


@pytest.mark.parametrize(
    ("mllm", "target", "named"),
    [
        (SomeMLLM(name="other/mllm"), SomeTarget(), "mllm is 'some/mllm' there, 'other/mllm' here"),
        (SomeMLLM(revision="def"), SomeTarget(), "mllm_revision"),
        (SomeMLLM(hidden_size=16), SomeTarget(), "hidden_size is 8 there, 16 here"),
        (SomeMLLM(num_layers=2), SomeTarget(), "num_layers"),
        (SomeMLLM(), SomeTarget(name="seg"), "target"),
        (SomeMLLM(), SomeTarget(expert="other/expert"), "expert"),
        (SomeMLLM(), SomeTarget(num_tokens=9), "num_tokens"),
        (SomeMLLM(), SomeTarget(width=7), "width"),
    ],
)
def test_a_bank_of_another_model_is_refused(tmp_path: Path, mllm: SomeMLLM, target: SomeTarget, named: str) -> None:
    with pytest.raises(InnerVisionError, match=named):
        ProbeBank.load(saved(tmp_path), mllm, target)


def test_a_file_without_one_of_its_probes_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys() if not key.startswith("probes.3.")}  # noqa: SIM118
        metadata = file.metadata()
    save_file(tensors, path, metadata)
    with pytest.raises(InnerVisionError, match=r"probes\.3\."):
        ProbeBank.load(path, SomeMLLM(), SomeTarget())


def test_layers_that_the_model_lacks_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with safe_open(path, "pt") as file:
        tensors = {key.replace("probes.3.", "probes.9."): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        facts = {**json.loads(file.metadata()["innervision"]), "layers": [-1, 0, 9]}
    save_file(tensors, path, {"innervision": json.dumps(facts)})
    with pytest.raises(InnerVisionError, match="9"):
        ProbeBank.load(path, SomeMLLM(), SomeTarget())


@pytest.mark.parametrize("content", [None, b"", b"not a probe file", b"\xff" * 100])
def test_what_is_no_probe_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "depth.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InnerVisionError, match=r"depth\.safetensors"):
        ProbeBank.load(path, SomeMLLM(), SomeTarget())


def test_a_safetensors_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(InnerVisionError, match="not a probe file"):
        ProbeBank.load(tmp_path / "x.safetensors", SomeMLLM(), SomeTarget())


def test_a_probes_first_weights_depend_on_nothing_but_seed_target_and_layer() -> None:
    torch.manual_seed(5)
    both = ProbeBank(SomeMLLM(), SomeTarget(), [1, 2], SETTINGS, seed=3)
    torch.manual_seed(6)
    alone = ProbeBank(SomeMLLM(), SomeTarget(), [2], SETTINGS, seed=3)
    weights = [bank.probes["2"].proj_in.weight for bank in (both, alone)]
    assert torch.equal(weights[0], weights[1])
    others = [
        both.probes["1"].proj_in.weight,
        ProbeBank(SomeMLLM(), SomeTarget(), [2], SETTINGS, seed=4).probes["2"].proj_in.weight,
        ProbeBank(SomeMLLM(), replace(SomeTarget(), name="seg"), [2], SETTINGS, seed=3).probes["2"].proj_in.weight,
    ]
    assert not any(torch.equal(weights[0], other) for other in others)


def test_an_unknown_kind_of_probe_is_refused() -> None:
    with pytest.raises(InnerVisionError, match="known are blind, linear, resampler"):
        ProbeBank(SomeMLLM(), SomeTarget(), [1], ProbeSettings(kind="mlp"))


def test_states_of_any_type_give_float32() -> None:
    bank = ProbeBank(SomeMLLM(), SomeTarget(), [1], SETTINGS)
    states = torch.randn(2, 7, 8).bfloat16()
    assert bank(1, states, torch.ones(2, 7, dtype=torch.bool)).dtype == torch.float32
