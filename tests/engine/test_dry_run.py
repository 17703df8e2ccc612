"""What a run would take, from configurations alone."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from benchmarks.models import MEMORY_SIZES, SIZES, build, make_descent, make_solver
from torch import nn

from innervision.cli import main
from innervision.config import ProbeSettings, TrainSettings
from innervision.engine.dry_run import dry_run
from innervision.engine.estimate import Estimate, estimate, estimate_scoring
from innervision.engine.live_memory import LiveMemory, find_cost
from innervision.engine.run import RunFolder
from innervision.errors import InnerVisionError
from innervision.mllm import MLLM
from innervision.probes import ProbeBank
from innervision.targets import load_targets
from stand_ins import write_noise_images
from tiny_experts import save_tiny_depth, save_tiny_gen, save_tiny_seg
from tiny_mllms import save_tiny


def on_meta(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


def test_memory_is_what_is_there_at_once() -> None:
    """Two layers: the input of the second is still there while its output is made; the first's input is not counted."""
    with torch.device("meta"):
        layers = nn.Linear(10, 100, bias=False), nn.Linear(100, 50, bias=False)
    states = on_meta(4, 10)
    with torch.no_grad():
        cost = find_cost(lambda: layers[1](layers[0](states)))
        assert cost.memory == 4 * (4 * 100 + 4 * 50)
        assert cost.operations == 2 * 4 * (10 * 100 + 100 * 50)
        one_by_one = find_cost(lambda: [on_meta(1000).sum() for _ in range(5)])
        assert one_by_one.memory == 4 * (1000 + 5)


def test_attention_keeps_no_matrix() -> None:
    query, key, value = on_meta(2, 3, 50, 8), on_meta(2, 3, 70, 8), on_meta(2, 3, 70, 8)
    with torch.no_grad():
        cost = find_cost(lambda: F.scaled_dot_product_attention(query, key, value))
    assert cost.memory == 4 * 2 * 3 * 50 * 8
    assert cost.operations == 2 * (2 * 2 * 3 * 50 * 70 * 8)


def estimate_bench(kind: str, layers: range) -> Estimate:
    """At the size of the benchmark's memory for tests, in float32."""
    size = MEMORY_SIZES["tiny"]
    bench = build(size, torch.device("meta"))
    bench.mllm.model.float()
    settings = ProbeSettings(kind=kind, heads=size.heads(4))
    with torch.device("meta"):
        banks = {target.name: ProbeBank.for_models(bench.mllm, target, layers, settings) for target in bench.targets}
    return estimate(bench.mllm, bench.targets, banks, bench.batch.inputs, torch.float64)


@pytest.mark.parametrize(("kind", "make"), [("ridge", make_solver), ("resampler", make_descent)])
def test_memory_is_what_fitting_uses(kind: str, make: Callable) -> None:
    """Beside what real fitting of the same models has at once, on the CPU; both kinds differ in what is largest."""
    layers = range(4, 33, 4)
    found = estimate_bench(kind, layers)
    bench = build(MEMORY_SIZES["tiny"], torch.device("cpu"))
    learner = make(bench, layers)
    learner.learn(bench.batch)  # from here on there are gradients
    with LiveMemory() as live:
        learner.learn(bench.batch)
    learner.finish_step()
    pixels = sum(each.nbytes for each in bench.batch.pixels.values())  # these were there before
    assert found.per_batch == pytest.approx(live.peak + pixels, rel=0.15)
    frozen = [bench.mllm.model, *bench.targets]
    weights = sum(each.nbytes for module in frozen for each in (*module.parameters(), *module.buffers()))
    assert sum(found.weights.values()) == pytest.approx(weights, rel=0.01)
    if kind == "ridge":
        modules = [*learner.states.values(), *learner.features.values()]
        sums = sum(each.nbytes for module in modules for each in module.buffers())
    else:
        tensors = [each for state in learner.optimizer.state.values() for each in state.values()]
        sums = sum(each.nbytes for each in tensors) + found.probes
    assert found.fitting == pytest.approx(sums, rel=0.01)


@pytest.mark.parametrize(("kind", "make"), [("ridge", make_solver), ("resampler", make_descent)])
def test_memory_is_what_scoring_uses(kind: str, make: Callable) -> None:
    """Beside what predicting of the same models has at once, while the experts' features are kept."""
    layers = range(4, 33, 4)
    size = MEMORY_SIZES["tiny"]
    settings = ProbeSettings(kind=kind, heads=size.heads(4))
    dry = build(size, torch.device("meta"))
    dry.mllm.model.float()
    with torch.device("meta"):
        banks = {target.name: ProbeBank.for_models(dry.mllm, target, layers, settings) for target in dry.targets}
    found = estimate_scoring(dry.mllm, dry.targets, banks, dry.batch.inputs)
    bench = build(size, torch.device("cpu"))
    learner = make(bench, layers)
    with torch.no_grad(), LiveMemory() as live:
        kept = [target.encode(bench.batch.pixels[target.name]) for target in bench.targets]
        learner.session.predict(bench.batch.inputs, learner.banks, lambda *_: None)
    del kept
    pixels = sum(each.nbytes for each in bench.batch.pixels.values())  # these were there before
    assert found.per_batch == pytest.approx(live.peak + pixels, rel=0.15)
    assert found.probes == sum(each.nbytes for bank in learner.banks.values() for each in bank.state_dict().values())


def test_operations_are_those_of_the_formulas_at_full_size() -> None:
    """Vicuna-7B over 576 + 20 tokens, by the sizes of its matrices and of attention; the vision tower likewise."""
    size = replace(SIZES["full"], batch=1)
    bench = build(size, torch.device("meta"))
    with torch.device("meta"):
        banks = {"depth": ProbeBank.for_models(bench.mllm, bench.targets[0], [1])}
    found = estimate(bench.mllm, bench.targets, banks, bench.batch.inputs, torch.float32)
    tokens, width, hidden = 596, 4096, 11_008
    llm = 32 * (2 * tokens * (4 * width**2 + 3 * width * hidden) + 4 * tokens**2 * width)
    patches, width, hidden = 577, 1024, 4096
    tower = 24 * (2 * patches * (4 * width**2 + 2 * width * hidden) + 4 * patches**2 * width)
    tower += 2 * 576 * 3 * 14**2 * width + 2 * 576 * (1024 * 4096 + 4096**2)
    assert found.operations["MLLM"] == pytest.approx(llm + tower, rel=1e-3)
    assert sum(found.weights.values()) > 2 * 7.0e9  # in bfloat16, with the experts in float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models without their weights."""
    root = tmp_path_factory.mktemp("dry")
    for make in (partial(save_tiny, "llava"), save_tiny_depth, save_tiny_gen, save_tiny_seg):
        name = "llava" if isinstance(make, partial) else make.__name__.removeprefix("save_tiny_")
        make(root / name)
    for weights in root.rglob("*.safetensors"):
        weights.unlink()
    write_noise_images(root / "images", 40)
    return root


@pytest.fixture
def settings(folder: Path, tmp_path: Path) -> TrainSettings:
    return TrainSettings(
        mllm=str(folder / "llava"),
        targets=",".join(f"{kind}={folder / kind}" for kind in ("depth", "gen", "seg")),
        images=str(folder / "images"),
        out=str(tmp_path / "run"),
        batch_size=8,
        device="cpu",
    )


def test_nothing_is_read_but_configurations_and_nothing_is_written(
    settings: TrainSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--{name}={getattr(settings, name)}" for name in ("mllm", "targets", "images", "out", "batch_size")]
    assert main(["train", *words, "--dry-run", "--tflops", "1", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    # 3, 5, 10 and 20 images are milestones, after which steps end, too
    assert "40 images, 8 a step of all processes: 9 steps in 1 epoch\n" in said
    assert "hours of one device" in said
    assert not Path(settings.out).exists()


def test_hours_are_operations_over_speed(settings: TrainSettings) -> None:
    text = dry_run(replace(settings, probe=ProbeSettings(kind="resampler"), epochs=3), 1e-6)
    [(number, unit)] = re.findall(r"operations for an image: ([\d.]+) (.)FLOP", text)
    [hours] = re.findall(r"([\d.]+) hours", text)
    operations = float(number) * {"k": 1e3, "M": 1e6, "G": 1e9}[unit]
    assert float(hours) == pytest.approx(3 * 40 * operations / 1e6 / 3600, rel=0.02)  # both are rounded
    assert "their gradients and AdamW's state" in text


@pytest.mark.parametrize(
    ("changes", "tflops", "said"),
    [
        ({"quantization": "4bit"}, None, "models quantized to 4bit"),
        ({}, 0.0, "tflops must be above 0"),
        ({"layers": "9"}, None, "there is no layer 9"),
    ],
)
def test_what_is_not_known_is_said(settings: TrainSettings, changes: dict, tflops: float | None, said: str) -> None:
    with pytest.raises(InnerVisionError, match=said):
        dry_run(replace(settings, **changes), tflops)


def test_an_mllm_that_needs_values_is_said(settings: TrainSettings, tmp_path: Path) -> None:
    save_tiny("idefics3", tmp_path / "idefics3")
    with pytest.raises(InnerVisionError, match=r"idefics3 cannot be run without values .*: a dry run is not known for"):
        dry_run(replace(settings, mllm=str(tmp_path / "idefics3")))


def test_scoring_says_what_it_would_take_and_writes_nothing(
    settings: TrainSettings, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(settings.out)
    experts = {kind: {"kind": kind, "name": str(folder / kind)} for kind in ("depth", "gen", "seg")}
    run.write_settings(settings, {"experts": experts, "layers": [0, 2, 4]})
    mllm = MLLM.load(settings.mllm, device="meta", dtype=torch.float32)
    mllm.widths = dict.fromkeys(range(5), 32)
    for target in load_targets(settings.targets, device="meta"):
        bank = ProbeBank.for_models(mllm, target, [0, 2, 4])
        bank.mean.zero_()
        bank.save(run.probes(target.name))
    before = sorted(run.path.rglob("*"))
    words = ["evaluate", "similarity", settings.out, "--images", str(folder / "images"), "--dry-run", "--device", "cpu"]
    assert main([*words, "--tflops", "1", "--batch-size", "16", "--limit", "20"]) == 0
    said = capsys.readouterr().out
    assert "20 images, 16 at once: 2 batches\n" in said
    assert "weights: seg" in said
    assert "hours of one device" in said
    assert "AdamW" not in said
    assert sorted(run.path.rglob("*")) == before
    assert main([*words[:5], "--tflops", "1"]) == 1
    assert "--tflops goes with --dry-run" in capsys.readouterr().err


def test_speed_goes_with_a_dry_run(settings: TrainSettings, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--{name}={getattr(settings, name)}" for name in ("mllm", "images", "out")]
    assert main(["train", *words, "--tflops", "1"]) == 1
    assert "--tflops goes with --dry-run" in capsys.readouterr().err
