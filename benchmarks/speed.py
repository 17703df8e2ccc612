"""How long a step takes beside the frozen forwards alone, and beside the plain way."""

import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import Bench, Size, build, make_descent, make_solver
from benchmarks.plain import PlainLearner
from innervision.engine.descent import Descent
from innervision.engine.learner import Learner


def measure(size: Size, device: torch.device, repeats: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Time all ways in turn, round by round, after a first round that checks that they do the same work.

    Returns:
        Seconds of every round, and floating-point operations, by what was measured: mllm, experts (together the
        frozen forwards), ridge, resampler (a step of exact or of trained probes, forwards included), plain.
        Operations are those of matrices, convolutions and attention.
    """
    say("building the models")
    bench = build(size, device)
    layers = range(1, size.num_layers + 1)
    solver, descent = make_solver(bench, layers), make_descent(bench, layers)
    plain = PlainLearner(bench, descent)
    say("checking that the trained and the plain way have the same losses and gradients")
    check_same(bench, descent, plain)
    ways: dict[str, Callable[[], object]] = {
        "mllm": lambda: forward_mllm(bench),
        "experts": lambda: forward_experts(bench),
        "ridge": lambda: step(solver, bench),
        "resampler": lambda: step(descent, bench),
        "plain": lambda: plain_step(plain),
    }
    flops = {name: count_flops(run) for name, run in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(-1, repeats):
        for name, run in ways.items():
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_number >= 0:  # the one before warms up
                seconds[name].append(time.perf_counter() - began)
        last = ", ".join(f"{name} {times[-1]:.2f} s" for name, times in seconds.items() if times)
        say(f"speed, round {round_number + 1} of {repeats}: {last or 'warmed up'}")
    return seconds, flops


def count_flops(run: Callable[[], object]) -> int:
    """Count the floating-point operations of a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def step(learner: Learner, bench: Bench) -> None:
    """Take one step of fitting with all targets, as `innervision train` does with one micro-batch."""
    learner.learn(bench.batch)
    learner.finish_step()


def plain_step(plain: PlainLearner) -> None:
    """Take the same step the plain way."""
    plain.learn()
    plain.finish_step()


@torch.no_grad()
def forward_mllm(bench: Bench) -> None:
    """Run the MLLM without logits, and without anything of ours."""
    inputs = bench.batch.inputs.to(bench.mllm.device, bench.mllm.model.dtype)
    bench.mllm.model.model(**inputs.tensors, use_cache=False)


def forward_experts(bench: Bench) -> None:
    """Run every expert once."""
    for target in bench.targets:
        target.encode(bench.batch.pixels[target.name])


def check_same(bench: Bench, descent: Descent, plain: PlainLearner) -> None:
    """Check that both ways give the same loss of every probe and the same gradients, then drop them.

    The tolerance is for sums in another order: in float32, or in bfloat16 on an accelerator.
    """
    tolerance = 1e-4 if bench.mllm.device.type == "cpu" else 2e-2
    probes = {name: bank.probes[str(descent.layers[0])] for name, bank in descent.banks.items()}
    expected = plain.learn()
    expected_gradients = {name: gradient(probe) for name, probe in probes.items()}
    descent.optimizer.zero_grad(set_to_none=True)
    descent.learn(bench.batch)
    gradients = {name: gradient(probe) / len(bench.batch.names) for name, probe in probes.items()}
    losses = descent.finish_step()["loss"]
    for name, by_layer in expected.items():
        for layer, loss in by_layer.items():
            value = float(loss.detach())
            if abs(losses[name][layer] - value) > tolerance * value:
                raise AssertionError(f"{name}, layer {layer}: loss {losses[name][layer]} here, {value} the plain way")
        error = (gradients[name] - expected_gradients[name]).norm() / expected_gradients[name].norm()
        if error > 5 * tolerance:
            raise AssertionError(f"{name}: the gradients of the two ways differ by {float(error):.2g}")


def gradient(module: torch.nn.Module) -> Tensor:
    """Give the gradients of all weights of a module as one vector."""
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


RATIOS = {
    "ridge/frozen": ("ridge", "frozen"),
    "resampler/frozen": ("resampler", "frozen"),
    "plain/resampler": ("plain", "resampler"),
}
"""Name -> what is divided by what."""


def flop_ratios(flops: dict[str, int]) -> dict[str, float]:
    """Give the ratios of `summarise` for operations, which no other work on the machine changes."""
    counts = flops | {"frozen": flops["mllm"] + flops["experts"]}
    return {name: counts[above] / counts[below] for name, (above, below) in RATIOS.items()}


def summarise(seconds: dict[str, list[float]], batch: int) -> dict[str, dict[str, float]]:
    """Give median, least and largest of every time and ratio.

    The ratios are those of the medians; their least and largest are over the rounds.
    """
    times = seconds | {"frozen": [a + b for a, b in zip(seconds["mllm"], seconds["experts"], strict=True)]}
    result = {name: spread(values) for name, values in times.items()}
    for name, (above, below) in RATIOS.items():
        ratios = spread([a / b for a, b in zip(times[above], times[below], strict=True)])
        result[name] = ratios | {"median": result[above]["median"] / result[below]["median"]}
    for name in ("ridge", "resampler"):
        result[f"{name}, images/s"] = spread([batch / value for value in times[name]])
    return result


def spread(values: list[float]) -> dict[str, float]:
    """Give median, least and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def name_machine(device: torch.device) -> str:
    """Say on what the times were taken."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"


def say(line: str) -> None:
    """Tell how far the benchmark is."""
    print(line, file=sys.stderr, flush=True)
