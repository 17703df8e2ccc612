"""A bank's file: what it keeps, and what it refuses."""

import json
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from innervision.config import ProbeSettings
from innervision.errors import InnerVisionError
from innervision.probes import ProbeBank, read_metadata
from innervision.probes.probe import Probe


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
    kind: str = "depth"
    expert: str = "some/expert"
    revision: str | None = None
    num_tokens: int = 4
    width: int = 5


SETTINGS = ProbeSettings(kind="resampler", dim_head=2, heads=2)


def saved(tmp_path: Path, **options: object) -> Path:
    bank = ProbeBank.for_models(SomeMLLM(), SomeTarget(), [-1, 0, 3], SETTINGS, seed=1)
    bank.mean.copy_(torch.arange(20.0).view(4, 5))
    bank.save(tmp_path / "depth.safetensors", {"prompt": "Describe."})
    return tmp_path / "depth.safetensors"


def test_a_saved_bank_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = ProbeBank.for_models(SomeMLLM(), SomeTarget(), [-1, 0, 3], SETTINGS, seed=1)
    after = ProbeBank.load(path)
    assert after.layers == [-1, 0, 3]
    assert after.info == before.info
    assert after.settings == before.settings
    for layer in after.layers:
        states, mask = torch.randn(2, 7, SomeMLLM().width(layer)), torch.ones(2, 7, dtype=torch.bool)
        assert torch.equal(before(layer, states, mask), after(layer, states, mask))
    assert torch.equal(after.mean, torch.arange(20.0).view(4, 5))


def test_metadata_says_what_the_bank_belongs_to(tmp_path: Path) -> None:
    metadata = read_metadata(saved(tmp_path))
    assert metadata["mllm"] == "some/mllm"
    assert metadata["expert"] == "some/expert"
    assert metadata["kind"] == "depth"
    assert metadata["widths"] == {"-1": 6, "0": 8, "3": 8}
    assert metadata["num_tokens"] == 4
    assert metadata["facts"] == {"prompt": "Describe."}
    assert metadata["probe"]["kind"] == "resampler"


@pytest.mark.parametrize(
    ("mllm", "target", "named"),
    [
        (SomeMLLM(name="other/mllm"), SomeTarget(), "mllm is 'some/mllm' there, 'other/mllm' here"),
        (SomeMLLM(revision="def"), SomeTarget(), "mllm_revision"),
        (SomeMLLM(hidden_size=16), SomeTarget(), r"widths is {-1: 6, 0: 8, 3: 8} there, {-1: 6, 0: 16, 3: 16} here"),
        (SomeMLLM(num_layers=4), SomeTarget(), "num_layers is 3 there, 4 here"),
        (SomeMLLM(num_layers=2), SomeTarget(), "no layer 3"),
        (SomeMLLM(), SomeTarget(name="seg"), "target"),
        (SomeMLLM(), SomeTarget(expert="other/expert"), "expert"),
        (SomeMLLM(), SomeTarget(num_tokens=9), "num_tokens"),
        (SomeMLLM(), SomeTarget(width=7), "width"),
    ],
)
def test_a_bank_of_another_model_is_refused(tmp_path: Path, mllm: SomeMLLM, target: SomeTarget, named: str) -> None:
    bank = ProbeBank.load(saved(tmp_path))
    bank.check(SomeMLLM(), SomeTarget())
    with pytest.raises(InnerVisionError, match=named):
        bank.check(mllm, target)


def test_a_file_without_one_of_its_probes_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys() if not key.startswith("probes.3.")}  # noqa: SIM118
        metadata = file.metadata()
    save_file(tensors, path, metadata)
    with pytest.raises(InnerVisionError, match=r"probes\.3\."):
        ProbeBank.load(path)


def rewritten(path: Path, **changes: object) -> Path:
    """The file with other metadata."""
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = {**json.loads(file.metadata()["innervision"]), **changes}
    save_file(tensors, path, {"innervision": json.dumps(metadata)})
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 1}, "has format 1; this version of InnerVision reads format 2"),
        ({"widths": {"-1": 6, "0": 8, "9": 8}}, "does not hold the probes that its metadata names"),
        ({"widths": {"-1": 6, "0": 9, "3": 8}}, "does not hold the probes that its metadata names"),
        ({"widths": None}, "does not say what its probes are"),
        ({"probe": {"kind": "resampler", "speed": 3}}, "does not say what its probes are"),
        ({"probe": {"kind": "gone"}}, "there is no probe 'gone'"),
        ({"probe": {"kind": "resampler", "depth": 10**6}}, "tensors are not 3 probes of depth 1000000"),
        ({"probe": {"kind": "resampler", "heads": 10**7}}, "does not hold the probes that its metadata names"),
        ({"probe": {"kind": "resampler", "ff_mult": 1e300}}, "does not hold the probes that its metadata names"),
        ({"widths": {str(layer): 8 for layer in range(10**5)}}, "are not 100000 probes"),
        ({"num_tokens": 10**9}, r"the mean feature is \(4, 5\), not \(1000000000, 5\)"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(InnerVisionError, match=said):
        ProbeBank.load(rewritten(saved(tmp_path), **changes))


def test_some_layers_are_loaded_without_the_tensors_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = saved(tmp_path), []

    class Noting:
        def __init__(self, *given: object, **named: object) -> None:
            self.file = safe_open(*given, **named)

        def __enter__(self) -> "Noting":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

        def get_tensor(self, key: str) -> torch.Tensor:
            read.append(key)
            return self.file.get_tensor(key)

    monkeypatch.setattr("innervision.probes.bank.safe_open", Noting)
    bank = ProbeBank.load(path, [3])
    assert bank.layers == [3]
    assert {key.split(".")[1] for key in read if key != "mean"} == {"3"}
    states, mask = torch.randn(2, 7, 8), torch.ones(2, 7, dtype=torch.bool)
    assert torch.equal(bank(3, states, mask), ProbeBank.load(path)(3, states, mask))
    with pytest.raises(InnerVisionError, match="no probe of layer 2"):
        ProbeBank.load(path, [3, 2])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_written_nor_read(tmp_path: Path, value: float) -> None:
    path = saved(tmp_path)
    bank = ProbeBank.load(path)
    with torch.no_grad():
        next(bank.probes["3"].parameters()).view(-1)[0] = value
    with pytest.raises(InnerVisionError, match="the probe of depth at layer 3 has weights that are not finite"):
        bank.save(tmp_path / "other.safetensors")
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors["probes.0.norm_out.bias"][1] = value
    save_file(tensors, path, metadata)
    with pytest.raises(InnerVisionError, match="at layer 0 has weights that are not finite"):
        ProbeBank.load(path)


def test_a_mean_that_is_not_known_is_read_as_such(tmp_path: Path) -> None:
    ProbeBank.for_models(SomeMLLM(), SomeTarget(), [1], SETTINGS).save(tmp_path / "depth.safetensors")
    assert ProbeBank.load(tmp_path / "depth.safetensors").mean.isnan().all()


@pytest.mark.parametrize("kind", ["resampler", "linear"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_stands_in_masked_tokens_does_not_matter(kind: str, poison: float) -> None:
    settings = replace(SETTINGS, kind=kind)
    bank = ProbeBank.for_models(SomeMLLM(), SomeTarget(), [1], settings)
    states, mask = torch.randn(2, 7, 8), torch.ones(2, 7, dtype=torch.bool)
    mask[0, 4:] = mask[1, :2] = False
    expected = bank(1, states, mask)
    assert torch.equal(bank(1, states.masked_fill(~mask[..., None], poison), mask), expected)
    assert expected.isfinite().all()


def test_probes_with_positions_are_not_called_without_them() -> None:
    bank = ProbeBank.for_models(SomeMLLM(), SomeTarget(), [1], replace(SETTINGS, positions=True))
    states, mask = torch.randn(2, 7, 8), torch.ones(2, 7, dtype=torch.bool)
    with pytest.raises(ValueError, match="read tokens by their places"):
        bank(1, states, mask)
    assert bank(1, states, mask, torch.rand(2, 7, 4)).shape == (2, 4, 5)


class Low(Probe):
    """A kind of probe of another package, with a setting of its own."""

    def __init__(self, width_in: int, num_queries: int, width_out: int, settings: ProbeSettings, rank: int = 1) -> None:
        super().__init__()
        self.shape = num_queries, width_out
        self.down, self.up = torch.nn.Linear(width_in, rank), torch.nn.Linear(rank, num_queries * width_out)

    def forward(self, states: torch.Tensor, mask: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
        return self.up(self.down(states.mean(dim=1))).unflatten(1, self.shape)


def test_a_probe_of_another_package_takes_options_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("low", "test_bank:Low", "innervision.probes")
    monkeypatch.setattr("innervision.registry.entry_points", lambda group: [entry])
    monkeypatch.setattr(EntryPoint, "load", lambda self: Low)
    settings = ProbeSettings(kind="low", options={"rank": 3})
    bank = ProbeBank.for_models(SomeMLLM(), SomeTarget(), [1], settings)
    assert bank.probes["1"].down.out_features == 3
    bank.save(tmp_path / "depth.safetensors")
    assert ProbeBank.load(tmp_path / "depth.safetensors").probes["1"].down.out_features == 3
    with pytest.raises(InnerVisionError, match=r"probe\.options does not fit the probe 'low': .*'depth'"):
        ProbeBank.for_models(SomeMLLM(), SomeTarget(), [1], ProbeSettings(kind="low", options={"depth": 3}))


@pytest.mark.parametrize("content", [None, b"", b"not a probe file", b"\xff" * 100])
def test_what_is_no_probe_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "depth.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InnerVisionError, match=r"depth\.safetensors"):
        ProbeBank.load(path)


def test_a_safetensors_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(InnerVisionError, match="not a probe file"):
        ProbeBank.load(tmp_path / "x.safetensors")


def test_a_probes_first_weights_depend_on_nothing_but_seed_target_and_layer() -> None:
    torch.manual_seed(5)
    both = ProbeBank.for_models(SomeMLLM(), SomeTarget(), [1, 2], SETTINGS, seed=3)
    torch.manual_seed(6)
    alone = ProbeBank.for_models(SomeMLLM(), SomeTarget(), [2], SETTINGS, seed=3)
    weights = [bank.probes["2"].proj_in.weight for bank in (both, alone)]
    assert torch.equal(weights[0], weights[1])
    others = [
        both.probes["1"].proj_in.weight,
        ProbeBank.for_models(SomeMLLM(), SomeTarget(), [2], SETTINGS, seed=4).probes["2"].proj_in.weight,
        ProbeBank.for_models(SomeMLLM(), replace(SomeTarget(), name="seg"), [2], SETTINGS, seed=3)
        .probes["2"]
        .proj_in.weight,
    ]
    assert not any(torch.equal(weights[0], other) for other in others)


def test_an_unknown_kind_of_probe_is_refused() -> None:
    with pytest.raises(InnerVisionError, match="known are blind, linear, pooled, resampler, ridge"):
        ProbeBank.for_models(SomeMLLM(), SomeTarget(), [1], ProbeSettings(kind="mlp"))


def test_states_of_any_type_give_float32() -> None:
    bank = ProbeBank.for_models(SomeMLLM(), SomeTarget(), [1], SETTINGS)
    states = torch.randn(2, 7, 8).bfloat16()
    assert bank(1, states, torch.ones(2, 7, dtype=torch.bool)).dtype == torch.float32
