"""What a training will take, from configurations alone: no weight is read, nothing is computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from innervision.engine.live_memory import Cost, find_cost
from innervision.errors import InnerVisionError, first_line
from innervision.mllm import MLLM, Inputs
from innervision.mllm.split import bytes_of_part
from innervision.probes import ProbeBank
from innervision.probes.moments import FeatureMoments, StateMoments
from innervision.probes.ridge import Ridge
from innervision.targets.target import Target


@dataclass(frozen=True)
class Estimate:
    """What one process takes. Everything in bytes or operations; what scoring does not have is 0."""

    weights: dict[str, int]
    """Of the MLLM and of each expert."""
    probes: int
    """Weights of all probes."""
    kept: int
    """Of a micro-batch, as long as it is at work: pixels and the experts' features."""
    activations: dict[str, int]
    """Of a micro-batch, in each part; the parts work one after the other."""
    operations: dict[str, int]
    """For one image: of the MLLM, the experts and the probes."""
    fitting: int = 0
    """Sums of exact probes; or the gradients of trained ones, and AdamW's two moments."""
    state: int = 0
    """Of the file for --resume."""

    @property
    def total(self) -> int:
        """The most that is there at once."""
        return sum(self.weights.values()) + self.probes + self.fitting + self.per_batch

    @property
    def per_batch(self) -> int:
        """What grows with the micro-batch."""
        return self.kept + max(self.activations.values())


@torch.no_grad()
def estimate(
    mllm: MLLM,
    targets: Sequence[Target],
    banks: Mapping[str, ProbeBank],
    inputs: Inputs,
    sum_dtype: torch.dtype,
    milestones: int = 0,
    split: int = 1,
) -> Estimate:
    """Find out what fitting takes. What experts and probes make on the way is taken to be in float32.

    Args:
        mllm: on the device "meta".
        targets: the experts, on the device "meta".
        banks: of the targets, on the device "meta".
        inputs: of a micro-batch of images.
        sum_dtype: of the sums of exact probes.
        milestones: how often solutions of exact probes are kept.
        split: how many processes hold the MLLM together. What it makes on the way is taken to be whole in each.

    Raises:
        InnerVisionError: a part cannot be run without values.
    """
    batch, tokens = inputs.mask.shape
    probes = sum(_module_bytes(bank) for bank in banks.values())
    exact = all(isinstance(probe, Ridge) for bank in banks.values() for probe in bank.probes.values())
    if exact:
        fitting, kept_maps, cost = _sums(banks, batch, tokens, sum_dtype)
        state = fitting + milestones * kept_maps
    else:
        fitting, cost = 3 * probes, _run_probes(banks, inputs, learn=True)
        state = fitting  # the weights and two moments, without gradients
    return _estimate(mllm, targets, banks, inputs, split, cost, fitting=fitting, state=state)


@torch.no_grad()
def estimate_scoring(
    mllm: MLLM, targets: Sequence[Target], banks: Mapping[str, ProbeBank], inputs: Inputs, split: int = 1
) -> Estimate:
    """Find out what scoring takes, but for decoding by the experts' heads, whose weights count where they are there.

    For the arguments see `estimate`.

    Raises:
        InnerVisionError: a part cannot be run without values.
    """
    return _estimate(mllm, targets, banks, inputs, split, _run_probes(banks, inputs, learn=False))


def _estimate(
    mllm: MLLM,
    targets: Sequence[Target],
    banks: Mapping[str, ProbeBank],
    inputs: Inputs,
    split: int,
    of_probes: Cost,
    **facts: int,
) -> Estimate:
    """Add what the models take to what probes do: bytes of the work on the largest, operations for an image of all."""
    activations, operations, kept = _frozen(mllm, targets, inputs)
    return Estimate(
        weights=_weights(mllm, targets, split),
        probes=sum(_module_bytes(bank) for bank in banks.values()),
        kept=kept,
        activations={name: cost.memory for name, cost in activations.items()} | {"probes": of_probes.memory},
        operations={**operations, "probes": of_probes.operations},
        **facts,
    )


def _weights(mllm: MLLM, targets: Sequence[Target], split: int) -> dict[str, int]:
    """Give the bytes of the frozen models in a process."""
    part = _module_bytes(mllm.model) if split == 1 else bytes_of_part(mllm.model, split)
    return {"MLLM": part, **{target.name: _module_bytes(target) for target in targets}}


def _frozen(mllm: MLLM, targets: Sequence[Target], inputs: Inputs) -> tuple[dict[str, Cost], dict[str, int], int]:
    """Give the costs of the frozen models' parts for a batch, operations for an image, and bytes kept of a batch."""
    batch = len(inputs.mask)
    costs: dict[str, Cost] = dict(zip(("vision tower", "LLM"), _mllm_costs(mllm, inputs), strict=True))
    operations = {"MLLM": sum(cost.operations for cost in costs.values()) // batch}
    experts: dict[str, Cost] = {}
    kept = sum(value.nbytes for value in inputs.tensors.values() if isinstance(value, Tensor))
    for target in targets:
        pixels = torch.empty(batch, 3, target.preparer.height, target.preparer.width, device="meta")
        experts[target.name] = find_cost(partial(target.encode_pixels, pixels))
        kept += pixels.nbytes + 4 * batch * target.num_tokens * target.width
    operations["experts"] = sum(cost.operations for cost in experts.values()) // batch
    return costs | experts, operations, kept


def _mllm_costs(mllm: MLLM, inputs: Inputs) -> tuple[Cost, Cost]:
    """Run the vision tower with the projector, and then the decoder, without the checks between, which need values."""
    model, device = mllm.model, torch.device("meta")
    given = {
        name: value.to(device, mllm.dtype) if value.is_floating_point() else value  # sizes of grids are needed
        for name, value in inputs.tensors.items()
        if isinstance(value, Tensor) and ("pixel" in name or "image" in name)
    }
    batch, tokens = inputs.mask.shape
    width = mllm.model.config.get_text_config(decoder=True).hidden_size
    states = torch.empty(batch, tokens, width, dtype=mllm.dtype, device=device)
    every = torch.ones(batch, 1, tokens, tokens, dtype=torch.bool, device=device)
    try:
        tower = find_cost(lambda: model.get_image_features(**given))
        llm = find_cost(lambda: mllm.decoder.module(inputs_embeds=states, attention_mask=every, use_cache=False))
    except Exception as error:  # a model can raise anything
        raise InnerVisionError(
            f"{mllm.name} cannot be run without values ({type(error).__name__}: {first_line(error)}): a dry run is not "
            "known for it"
        ) from error
    return tower, llm


def _sums(banks: Mapping[str, ProbeBank], batch: int, tokens: int, dtype: torch.dtype) -> tuple[int, int, Cost]:
    """Give bytes of the sums and of solutions; and bytes of the work on one layer, operations for an image."""
    size = solutions = operations = work = 0
    by_cells: dict[int, dict[str, int]] = {}
    for name, bank in banks.items():
        probe = next(iter(bank.probes.values()))
        assert isinstance(probe, Ridge)
        width = bank.info.num_tokens * bank.info.width // probe.num_cells
        by_cells.setdefault(probe.num_cells, {})[name] = width
        size += _module_bytes(FeatureMoments(probe.num_cells, width, dtype))
    for width in next(iter(banks.values())).info.widths.values():
        for cells, targets in by_cells.items():
            moments = StateMoments(cells, width, targets, dtype)
            size += _module_bytes(moments)
            solutions += moments.solution_bytes()
            operations += moments.operations() + (2 * cells * tokens * width if cells > 1 else 0)
            interpolated = batch * cells * (16 * tokens if cells > 1 else 0)  # weights, areas and what is inside
            read = batch * cells * width * (4 + 3 * dtype.itemsize)  # as read, less the pivot, and of each part
            features = batch * cells * sum(targets.values()) * 2 * dtype.itemsize
            states = 4 * batch * tokens * width  # as they come, and in float32
            work = max(work, max(interpolated, read + features) + 2 * states)
    return size, solutions, Cost(work, operations)


def _run_probes(banks: Mapping[str, ProbeBank], inputs: Inputs, *, learn: bool) -> Cost:
    """Give bytes of the work on the largest probe, with its states, and operations for one image of all of them."""
    batch, tokens = inputs.mask.shape
    mask = torch.ones(batch, tokens, dtype=torch.bool, device="meta")
    places = torch.empty(batch, tokens, 4, device="meta")
    memory = operations = 0
    for bank in banks.values():
        if not learn:
            bank.requires_grad_(False)
        for layer, width in bank.info.widths.items():
            states = torch.empty(batch, tokens, width, device="meta")

            def work(bank: ProbeBank = bank, layer: int = layer, states: Tensor = states) -> object:
                prediction = bank(layer, states, mask, places)
                return F.smooth_l1_loss(prediction, torch.empty_like(prediction)).backward() if learn else prediction

            with torch.set_grad_enabled(learn):
                cost = find_cost(work)
            gradients = _module_bytes(bank.probes[str(layer)]) if learn else 0  # counted with those of all probes
            memory = max(memory, cost.memory - gradients + states.nbytes)
            operations += cost.operations // batch
    return Cost(memory, operations)


def _module_bytes(module: nn.Module) -> int:
    return sum(each.nbytes for each in (*module.parameters(), *module.buffers()))
