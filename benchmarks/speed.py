"""How long a step takes beside the frozen forwards alone, and beside the plain way."""

import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import Bench, Size, build
from benchmarks.plain import PlainLearner


def measure(size: Size, device: torch.device, repeats: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Time all ways in turn, round by round, after a first round that checks that they do the same work.

    Returns:
        Seconds of every round, and floating-point operations, by what was measured: mllm, experts (together the
        frozen forwards), ours, plain. Operations are those of matrices, convolutions and attention.
    """
    say("building the models")
    bench = build(size, device)
    plain = PlainLearner(bench)
    say("checking that both ways have the same losses and gradients")
    check_same(bench, plain)
    ways: dict[str, Callable[[], object]] = {
        "mllm": lambda: forward_mllm(bench),
        "experts": lambda: forward_experts(bench),
        "ours": lambda: step(bench),
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


def step(bench: Bench) -> None:
    """Take one step of training with all targets, as `innervision train` does with one micro-batch."""
    bench.learner.learn(bench.batch)
    bench.learner.finish_step()


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


def check_same(bench: Bench, plain: PlainLearner) -> None:
    """Check that both ways give the same loss of every probe and the same gradients, then drop them.

    The tolerance is for sums in another order: in float32, or in bfloat16 on an accelerator.
    """
    tolerance = 1e-4 if bench.mllm.device.type == "cpu" else 2e-2
    probes = {name: bank.probes[str(bench.layers[0])] for name, bank in bench.banks.items()}
    expected = plain.learn()
    expected_gradients = {name: gradient(probe) for name, probe in probes.items()}
    bench.learner.optimizer.zero_grad(set_to_none=True)
    bench.learner.learn(bench.batch)
    gradients = {name: gradient(probe) / len(bench.batch.names) for name, probe in probes.items()}
    losses = bench.learner.finish_step()["loss"]
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


def flop_ratios(flops: dict[str, int]) -> dict[str, float]:
    """Give the ratios of `summarise` for operations, which no other work on the machine changes."""
    return {
        "ours/frozen": flops["ours"] / (flops["mllm"] + flops["experts"]),
        "plain/ours": flops["plain"] / flops["ours"],
    }


def summarise(seconds: dict[str, list[float]], batch: int) -> dict[str, dict[str, float]]:
    """Give median, least and largest of every time and ratio.

    The ratios are those of the medians; their least and largest are over the rounds.
    """
    frozen = [a + b for a, b in zip(seconds["mllm"], seconds["experts"], strict=True)]
    times = {"mllm": seconds["mllm"], "experts": seconds["experts"], "frozen": frozen}
    times |= {"ours": seconds["ours"], "plain": seconds["plain"]}
    times["probes"] = [a - b for a, b in zip(seconds["ours"], frozen, strict=True)]
    result = {name: spread(values) for name, values in times.items()}
    for name, above, below in [("ours/frozen", "ours", "frozen"), ("plain/ours", "plain", "ours")]:
        ratios = spread([a / b for a, b in zip(times[above], times[below], strict=True)])
        result[name] = ratios | {"median": result[above]["median"] / result[below]["median"]}
    result["images/s"] = spread([batch / value for value in times["ours"]])
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
