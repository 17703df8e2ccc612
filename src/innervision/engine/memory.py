"""Whether the sums of exact probes fit into memory."""

import math
from collections.abc import Mapping

import psutil
import torch

from innervision.engine.processes import Rank
from innervision.errors import InnerVisionError
from innervision.probes.moments import FeatureMoments, StateMoments

WORKING_COPIES = 10
"""Matrices of D × D numbers in float64 that solving a layer holds at once, at most."""


def check_memory(devices: Mapping[FeatureMoments | StateMoments, torch.device], milestones: int, rank: Rank) -> str:
    """See that the sums, and the solutions that are kept on the way, fit into memory, before they are made.

    Args:
        devices: of the sums, which have no memory yet.
        milestones: how often a solution is kept.
        rank: of this process. Each of several keeps its share of the solutions, and two copies of one layer's sums.

    Returns:
        What they take in this process, in words.

    Raises:
        InnerVisionError: a device has not enough.
    """
    needed: dict[torch.device, int] = {}
    sizes = {moments: sum(buffer.nbytes for buffer in moments.buffers()) for moments in devices}
    for moments, device in devices.items():
        needed[device] = needed.get(device, 0) + sizes[moments]
    of_states = [moments for moments in devices if isinstance(moments, StateMoments)]
    kept = milestones * sum(moments.solution_bytes() for moments in of_states) // rank.count
    needed[torch.device("cpu")] = needed.get(torch.device("cpu"), 0) + kept
    work = 8 * WORKING_COPIES * max(moments.products.shape[1] for moments in of_states) ** 2
    if rank.count > 1:
        work += 2 * max(sizes[moments] for moments in of_states)
    for device, size in needed.items():
        free = free_memory(device) / (rank.on_machine if device.type == "cpu" else 1)
        if size + work > free:
            raise InnerVisionError(
                f"exact probes need {in_units(size + work, 'B')} of memory on {device} for their sums, where "
                f"{in_units(free, 'B')} are free: probe fewer layers (layers=every:4), or fewer targets"
            )
    operations = sum(moments.operations() for moments in of_states)
    return f"{in_units(sum(needed.values()), 'B')} of memory, and {in_units(operations, 'FLOP')} an image"


def in_units(number: float, unit: str) -> str:
    """Write a number with a prefix: k, M, G or T."""
    power = int(min(math.log10(max(number, 1)) / 3, 4))
    return f"{number / 1000**power:.3g} {('', 'k', 'M', 'G', 'T')[power]}{unit}"


def free_memory(device: torch.device) -> float:
    """Give the bytes that are free on a device; infinite where it does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available if device.type in ("cpu", "mps") else math.inf
