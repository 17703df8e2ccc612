"""What probes add to the frozen forwards of one image at full size, in operations: they are counted, not timed.

python -m benchmarks.operations

The forwards and the resamplers are counted on the device "meta", which computes nothing. One layer of exact probes is
computed, since what its sums do depends on their values; the other layers have the same width.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import SIZES, Bench, Size, SquareGrid, build, make_descent, make_solver
from benchmarks.speed import count_flops, forward_experts
from innervision.probes.ridge import Ridge


def main() -> None:
    """Count and print."""
    print(table(count(SIZES["full"])))


def table(counts: dict[str, int]) -> str:
    """Make a table of what `count` gives at full size, with its shares of the frozen forwards."""
    frozen = counts["mllm"] + counts["experts"]
    lines = [
        f"operations for one image at full size: three targets, all {SIZES['full'].num_layers + 1} layers",
        f"{'':<32}{'10¹²':>8}{'of frozen':>12}",
        *(f"{name:<32}{number / 1e12:>8.3f}{number / frozen:>12.1%}" for name, number in counts.items()),
    ]
    for kind in ("ridge", "resampler"):
        lines.append(f"{f'{kind}: step / frozen forwards':<32}{1 + counts[kind] / frozen:>8.3f}")
    return "\n".join(lines)


def count(size: Size) -> dict[str, int]:
    """Count the operations for one image: mllm, experts; ridge and resampler, what these add for layers 0 to L.

    `ridge: places` is a part of ridge: the interpolation of states to the targets' cells.
    """
    size = replace(size, batch=1)
    bench = build(size, torch.device("meta"))
    layers = size.num_layers + 1
    products, places = count_ridge(bench)
    return {
        "mllm": count_flops(lambda: forward_parts(bench)),
        "experts": count_flops(lambda: forward_experts(bench)),
        "ridge": layers * (products + places),
        "ridge: places": layers * places,
        "resampler": layers * count_resampler(bench),
    }


@torch.no_grad()
def forward_parts(bench: Bench) -> None:
    """Run the vision tower and the decoder, without LLaVA's own checks of its inputs, which need values."""
    model, inputs, dtype = bench.mllm.model.model, bench.batch.inputs, bench.mllm.dtype
    model.get_image_features(pixel_values=inputs.tensors["pixel_values"].to(dtype))
    states = make_states(bench, 0)
    every = torch.ones(1, 1, states.shape[1], states.shape[1], dtype=torch.bool, device=states.device)
    model.language_model(inputs_embeds=states.to(dtype), attention_mask=every, use_cache=False)


def make_states(bench: Bench, layer: int) -> torch.Tensor:
    """Make a layer's states of a batch, (B, T, D) float32 on the device of the MLLM."""
    return torch.randn(*bench.batch.inputs.mask.shape, bench.mllm.widths[layer], device=bench.mllm.device)


def count_ridge(bench: Bench) -> tuple[int, int]:
    """Count what the sums over one layer of an image take: products, and the interpolation of states to cells."""
    solver = make_solver(bench, [0])
    places = SquareGrid(bench.mllm).find(bench.batch.inputs, [0])[0]
    states = torch.randn(make_states(bench, 0).shape)
    mask = torch.ones(states.shape[:2], dtype=torch.bool)
    with FlopCounterMode(display=False) as counter:
        for (_, cells), moments in solver.states.items():
            for buffer in moments.to_empty(device="cpu").buffers():
                buffer.zero_()
            read, seen = Ridge.read(states, mask, places, cells)
            features = {
                name: torch.randn(1, cells, width, dtype=moments.sums.dtype) for name, width in moments.targets.items()
            }
            moments.add(read, seen, features, torch.tensor([False]), moments.sums.dtype)
    interpolation = counter.get_flop_counts()["Global"][torch.ops.aten.bmm]
    return counter.get_total_flops() - interpolation, interpolation


def count_resampler(bench: Bench) -> int:
    """Count what the gradients of one layer of an image take."""
    descent = make_descent(bench, [1])
    states, mask = make_states(bench, 1), torch.ones_like(bench.batch.inputs.mask)

    def learn() -> None:
        for bank in descent.banks.values():
            prediction = bank(1, states, mask)
            F.smooth_l1_loss(prediction, torch.zeros_like(prediction)).backward()

    return count_flops(learn)


if __name__ == "__main__":
    main()
