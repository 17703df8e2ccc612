"""Exact probes: sums over one pass of the images, and their solution."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from innervision.data.loader import Batch
from innervision.engine.learner import Learner
from innervision.engine.session import Session
from innervision.errors import InnerVisionError, require
from innervision.probes import ProbeBank
from innervision.probes.moments import (
    FIT,
    HELD_OUT,
    FeatureMoments,
    Solution,
    StateMoments,
    choose,
    held_out_fifth,
    solve,
)
from innervision.probes.ridge import Ridge
from innervision.terminal import tell

FEWEST = 5
"""Images without which nothing is held out and something fitted."""

FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Of the images, after which the probes are solved to see what more images bring."""

WORKING_COPIES = 10
"""Matrices of D × D numbers in float64 that solving a layer holds at once, at most."""

SOME_UNSEEN = 0.001
"""Share of cells that were not shown to the MLLM from which on it is told."""

STILL_GAINS = 0.01
"""Explained variance that the last doubling of the images must bring for more of them to be advised."""


class Solver(Learner):
    """The sums of a run's exact probes, for every layer."""

    def __init__(
        self, session: Session, banks: dict[str, ProbeBank], layers: Sequence[int], names: Sequence[str]
    ) -> None:
        """Make room for the sums.

        Args:
            session: the models.
            banks: of exact probes.
            layers: to be probed.
            names: of all images, of which a fifth is held out.

        Raises:
            InnerVisionError: there are too few images, or memory does not suffice.
        """
        super().__init__(session, banks, layers)
        require(
            len(names) >= FEWEST,
            f"exact probes need at least {FEWEST} images, some to fit and some to choose the penalty; {len(names)} "
            "were found",
        )
        self.held_out = held_out_fifth(names)
        self.milestones = [fraction * len(names) for fraction in FRACTIONS]
        self.cells = {name: self._probe(name, layers[0]).num_cells for name in banks}
        """Number of cells that share a map, by target."""
        bank = next(iter(banks.values()))
        self.features = nn.ModuleDict()
        self.states = nn.ModuleDict()
        devices: dict[FeatureMoments | StateMoments, torch.device] = {}
        for name, cells in self.cells.items():
            width = banks[name].info.num_tokens * banks[name].info.width // cells
            sums = FeatureMoments(cells, width, _sum_dtype(session.mllm.device))
            self.features[name] = sums
            devices[sums] = session.mllm.device
        for layer, (cells, names) in product(layers, self._readings().items()):
            widths = {name: self._features(name).pivot.shape[1] for name in names}
            moments = StateMoments(cells, bank.info.widths[layer], widths, _sum_dtype(bank.device_of(layer)))
            self.states[f"{layer}/{cells}"] = moments
            devices[moments] = bank.device_of(layer)
        self.cost = _check_memory(devices)
        """What the sums take, in words."""
        for module, device in devices.items():
            module.to_empty(device=device)
            for buffer in module.buffers():
                buffer.zero_()
        self.estimates: list[dict[str, Any]] = []
        """Solutions over the first images: their number, and by target and layer weights and means (float32, CPU)."""

    def learn(self, batch: Batch) -> None:
        """Add a batch to the sums. See `Learner.learn`."""
        if batch.inputs is None:
            return
        truth = self.encode(batch)
        held_out = torch.tensor([name in self.held_out for name in batch.names])
        features = {
            name: self._features(name).add(values.reshape(len(values), self.cells[name], -1), held_out)
            for name, values in truth.items()
        }

        def add(layer: int, states: Tensor, mask: Tensor, places: Tensor) -> None:
            for cells, names in self._readings().items():
                probe, moments = self._probe(names[0], layer), self._moments(layer, cells)
                device = moments.sums.device
                read, seen = probe.read(states.to(device), mask.to(device), places.to(device), cells)
                on_device = {name: features[name].to(device) for name in names}
                product_dtype = torch.float64 if device.type == "cpu" else self.session.probe_dtype(device)
                moments.add(read, seen, on_device, held_out, product_dtype)

        needed = any(bank.needs_places for bank in self.banks.values())
        self.session.read(batch.inputs, add, self.layers, places=needed)
        if self.milestones and self.count >= self.milestones[0]:
            self._estimate()

    def finish_step(self) -> dict[str, Any]:
        """Count the step."""
        self.step += 1
        return {}

    def finish(self, progress: bool) -> dict[str, dict[str, Any]]:
        """Solve for every layer and target, and say what the held-out images tell.

        Returns:
            By target, as `held_out` by layer: `penalty` (λ for states of unit variance; None = infinite), `images` and
            `explained_variance` of the held-out images when so many images were seen, and `unseen`, the share of cells
            that the MLLM was not shown.

        Raises:
            InnerVisionError: there is nothing to explain, or states are not finite.
        """
        for name in self.banks:
            self._check_features(name, self._features(name))
        facts: dict[str, dict[int, Any]] = {name: {} for name in self.banks}
        jobs = [*product(self.layers, self._readings())]
        for layer, cells in tqdm(
            jobs, desc="2 of 2: solving", unit=" layers", disable=not progress, dynamic_ncols=True
        ):
            states = self._moments(layer, cells)
            _check_states(layer, states)
            features = {name: self._features(name) for name in states.targets}
            for name, choice in choose(states, features).items():
                device = choice.solution.weight.device
                curve = [
                    *((each["images"], _solution(each["solutions"][name][layer], device)) for each in self.estimates),
                    (self.count, choice.solution),
                ]
                facts[name][layer] = {
                    "penalty": None if math.isinf(choice.penalty) else choice.penalty,
                    "images": [count for count, _ in curve],
                    "explained_variance": [
                        solution.explained(name, states, features[name], [HELD_OUT]) for _, solution in curve
                    ],
                    "unseen": 1 - float(states.counts.sum() / (features[name].images.sum() * cells)),
                }
                solution = solve(states, features[name], name, choice.penalty)
                states_mean = states.pivot.to(solution.states_mean) + solution.states_mean
                features_mean = self.mean(name).view(solution.features_mean.shape)
                self._probe(name, layer).set_solution(solution.weight, states_mean, features_mean)
        for name, by_layer in facts.items():
            for line in (_tell_unseen(name, by_layer), _advise(name, by_layer)):
                if line:
                    tell(line)
        return {name: {"held_out": by_layer} for name, by_layer in facts.items()}

    def mean(self, name: str) -> Tensor:
        """See `Learner.mean`."""
        return self._features(name).mean([FIT, HELD_OUT]).cpu().view(self.banks[name].mean.shape)

    def state(self) -> dict[str, Any]:
        """Give the sums, and the solutions on the way."""
        return {
            "features": self.features.state_dict(),
            "states": self.states.state_dict(),
            "milestones": self.milestones,
            "estimates": self.estimates,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See `Learner.load_state`."""
        self.features.load_state_dict(state["features"])
        self.states.load_state_dict(state["states"])
        self.milestones, self.estimates = state["milestones"], state["estimates"]

    def _readings(self) -> dict[int, list[str]]:
        """Give the targets that share the states in so many cells."""
        return {cells: [name for name in self.cells if self.cells[name] == cells] for cells in self.cells.values()}

    def _probe(self, name: str, layer: int) -> Ridge:
        probe = self.banks[name].probes[str(layer)]
        assert isinstance(probe, Ridge)
        return probe

    def _features(self, name: str) -> FeatureMoments:
        moments = self.features[name]
        assert isinstance(moments, FeatureMoments)
        return moments

    def _moments(self, layer: int, cells: int) -> StateMoments:
        moments = self.states[f"{layer}/{cells}"]
        assert isinstance(moments, StateMoments)
        return moments

    def _estimate(self) -> None:
        """Solve for what was seen so far, and keep the maps: they are scored once all held-out images were seen."""
        while self.milestones and self.count >= self.milestones[0]:
            del self.milestones[0]
        if not all(bool((self._features(name).images > 0).all()) for name in self.banks):
            return
        solutions: dict[str, dict[int, tuple[Tensor, ...]]] = {name: {} for name in self.banks}
        for layer, cells in product(self.layers, self._readings()):
            states = self._moments(layer, cells)
            _check_states(layer, states)
            for name, choice in choose(states, {name: self._features(name) for name in states.targets}).items():
                found = choice.solution
                tensors = (found.weight, found.states_mean, found.features_mean)
                solutions[name][layer] = tuple(tensor.float().cpu() for tensor in tensors)
        self.estimates.append({"images": self.count, "solutions": solutions})

    def _check_features(self, name: str, features: FeatureMoments) -> None:
        fitted, held_out = (int(features.images[part]) for part in (FIT, HELD_OUT))
        require(
            fitted > 0 and held_out > 0 and fitted + held_out >= FEWEST,
            f"exact probes need at least {FEWEST} images, some to fit and some to choose the penalty; "
            f"{fitted + held_out} could be read",
        )
        require(
            features.varies(),
            f"the features of {name} are the same in all {fitted + held_out} images: there is nothing to explain. "
            "Give different images",
        )


def _sum_dtype(device: torch.device) -> torch.dtype:
    """Give the type of sums: float64 where it costs little."""
    return torch.float64 if device.type == "cpu" else torch.float32


def _solution(tensors: Sequence[Tensor], device: torch.device) -> Solution:
    weight, states_mean, features_mean = (tensor.to(device).double() for tensor in tensors)
    return Solution(weight, states_mean, features_mean)


def _check_states(layer: int, states: StateMoments) -> None:
    """See that a layer's sums are finite.

    Raises:
        InnerVisionError: they are not.
    """
    require(
        bool(states.products.isfinite().all()),
        f"layer {layer} has states that are not finite: try dtype=float32, or leave the layer out",
    )


def _check_memory(devices: Mapping[FeatureMoments | StateMoments, torch.device]) -> str:
    """See that the sums, and the solutions that are kept on the way, fit into memory, before they are made.

    Args:
        devices: of the sums, which have no memory yet.

    Returns:
        What they take, in words.

    Raises:
        InnerVisionError: a device has not enough.
    """
    needed: dict[torch.device, int] = {}
    for moments, device in devices.items():
        size = sum(buffer.numel() * buffer.element_size() for buffer in moments.buffers())
        needed[device] = needed.get(device, 0) + size
    of_states = [moments for moments in devices if isinstance(moments, StateMoments)]
    kept = 4 * len(FRACTIONS) * sum(moments.solution_size() for moments in of_states)
    needed[torch.device("cpu")] = needed.get(torch.device("cpu"), 0) + kept
    work = 8 * WORKING_COPIES * max(moments.products.shape[1] for moments in of_states) ** 2
    for device, size in needed.items():
        if size + work > (free := _free_memory(device)):
            raise InnerVisionError(
                f"exact probes need {_in_units(size + work, 'B')} of memory on {device} for their sums, where "
                f"{_in_units(free, 'B')} are free: probe fewer layers (layers=every:4), or fewer targets"
            )
    operations = sum(moments.operations() for moments in of_states)
    return f"{_in_units(sum(needed.values()), 'B')} of memory, and {_in_units(operations, 'FLOP')} an image"


def _in_units(number: float, unit: str) -> str:
    """Write a number with a prefix: k, M, G or T."""
    power = int(min(math.log10(max(number, 1)) / 3, 4))
    return f"{number / 1000**power:.3g} {('', 'k', 'M', 'G', 'T')[power]}{unit}"


def _free_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available if device.type in ("cpu", "mps") else math.inf


def _tell_unseen(name: str, by_layer: Mapping[int, Mapping[str, Any]]) -> str | None:
    """Say so if the MLLM was not shown all of the images."""
    layer = max(by_layer, key=lambda layer: by_layer[layer]["unseen"])
    unseen = by_layer[layer]["unseen"]
    if unseen < SOME_UNSEEN:
        return None
    return (
        f"{name}: the MLLM was not shown {unseen:.1%} of the cells (at layer {layer}, the most of all), as where "
        "images are cropped; they are predicted as the mean feature"
    )


def _advise(name: str, by_layer: Mapping[int, Mapping[str, Any]]) -> str | None:
    """Say so if the last doubling of the images still brought something."""
    gains = {
        layer: facts["explained_variance"][-1] - facts["explained_variance"][-2]
        for layer, facts in by_layer.items()
        if len(facts["images"]) > 1
    }
    if not gains or max(gains.values()) <= STILL_GAINS:
        return None
    layer = max(gains, key=gains.__getitem__)
    before, after = by_layer[layer]["images"][-2:]
    return (
        f"{name}: more images would help. From {before:,} to {after:,} images, the explained variance of those held "
        f"out rose by {gains[layer]:.3f} at layer {layer}, and by more than {STILL_GAINS} at "
        f"{sum(gain > STILL_GAINS for gain in gains.values())} of {len(gains)} layers"
    )
