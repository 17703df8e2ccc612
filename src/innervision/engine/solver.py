"""Exact probes: sums over one pass of the images, and their solution."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from innervision.data.loader import Batch
from innervision.engine.gains import STILL_GAINS, last_doubling
from innervision.engine.learner import Learner, on_cpu
from innervision.engine.memory import check_memory
from innervision.engine.mesh import Mesh
from innervision.engine.session import Session
from innervision.engine.total import total_features, total_states
from innervision.errors import require
from innervision.probes import ProbeBank
from innervision.probes.moments import (
    FIT,
    HELD_OUT,
    Choice,
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

SOME_UNSEEN = 0.001
"""Share of cells that were not shown to the MLLM from which on it is told."""


class Solver(Learner):
    """The sums of a run's exact probes, for every layer."""

    def __init__(
        self,
        session: Session,
        banks: dict[str, ProbeBank],
        layers: Sequence[int],
        names: Sequence[str],
        milestones: Collection[int] = (),
        mesh: Mesh | None = None,
    ) -> None:
        """Make room for the sums.

        Args:
            session: the models.
            banks: of exact probes.
            layers: to be probed.
            names: of all images, of which a fifth is held out.
            milestones: numbers of the steps after which is solved what was seen so far.
            mesh: where this process stands, see `Learner`.

        Raises:
            InnerVisionError: there are too few images, or memory does not suffice.
        """
        super().__init__(session, banks, layers, mesh)
        self.rank = self.mesh.images
        """Of this process among those that have the same layers: they sum, and share out the solving."""
        require(
            len(names) >= FEWEST,
            f"exact probes need at least {FEWEST} images, some to fit and some to choose the penalty; {len(names)} "
            "were found",
        )
        self.held_out = held_out_fifth(names)
        self.milestones = milestones
        self.cells = {name: self._probe(name, bank.layers[0]).num_cells for name, bank in banks.items()}
        """Number of cells that share a map, by target."""
        bank = next(iter(banks.values()))
        self.features: dict[str, FeatureMoments] = {}
        """Of this process, by target."""
        self.states: dict[tuple[int, int], StateMoments] = {}
        """Of this process, by layer and number of cells."""
        devices: dict[FeatureMoments | StateMoments, torch.device] = {}
        for name, cells in self.cells.items():
            width = banks[name].info.num_tokens * banks[name].info.width // cells
            sums = FeatureMoments(cells, width, _sum_dtype(session.mllm.device))
            self.features[name] = sums
            devices[sums] = session.mllm.device
        for layer, (cells, names) in product(bank.layers, self._readings().items()):
            widths = {name: self.features[name].pivot.shape[1] for name in names}
            moments = StateMoments(cells, bank.info.widths[layer], widths, _sum_dtype(bank.device_of(layer)))
            self.states[layer, cells] = moments
            devices[moments] = bank.device_of(layer)
        self.jobs = [*product(bank.layers, self._readings())]
        """What is solved, layers and numbers of cells. The processes that have these layers take them in turn."""
        self.cost = check_memory(devices, len(FRACTIONS), self.rank)
        """What the sums take, in words."""
        for module, device in devices.items():
            module.to_empty(device=device)
            for buffer in module.buffers():
                buffer.zero_()
        self.estimates: list[dict[str, Any]] = []
        """Solutions over the first images: their number, and by target and layer weights (float32) and means on the
        CPU, of what this process solves."""

    def work(self, images: int) -> dict[str, int]:
        """See `Learner.work`. Layers are solved at each milestone, and at the end."""
        times = sum(milestone > self.step for milestone in self.milestones) + 1
        return {"reading layers": images, "solving": times * len(self._mine())}

    def learn(self, batch: Batch) -> None:
        """Add a batch to the sums. See `Learner.learn`."""
        if batch.inputs is None:
            return
        truth = self.encode(batch)
        held_out = torch.tensor([name in self.held_out for name in batch.names])
        features = {
            name: self.features[name].add(values.reshape(len(values), self.cells[name], -1), held_out)
            for name, values in truth.items()
        }

        own = next(iter(self.banks.values())).layers

        def add(layer: int, states: Tensor, mask: Tensor, places: Tensor) -> None:
            if layer not in own:
                return
            for cells, names in self._readings().items():
                probe, moments = self._probe(names[0], layer), self.states[layer, cells]
                device = moments.sums.device
                read, seen = probe.read(states.to(device), mask.to(device), places.to(device), cells)
                on_device = {name: features[name].to(device) for name in names}
                product_dtype = torch.float64 if device.type == "cpu" else self.session.probe_dtype(device)
                moments.add(read, seen, on_device, held_out, product_dtype)

        needed = any(bank.needs_places for bank in self.banks.values())
        self.session.read(batch.inputs, add, self.layers, places=needed)

    def keep_pace(self, turns: int) -> None:
        """Do nothing: the sums of a step need nobody else."""

    def finish_step(self) -> dict[str, Any]:
        """Count the step, and solve for what was seen so far if it is a milestone."""
        size = torch.tensor(self.step_size)
        self.rank.sum([size])
        self.step += 1
        self.count += int(size)
        self.step_size = 0
        if self.step in self.milestones:
            self._estimate()
        return {}

    def finish(self) -> dict[str, dict[str, Any]]:
        """Solve for every layer and target, and say what the held-out images tell.

        Returns:
            By target, as `held_out` by layer: `penalty` (λ for states of unit variance; None = infinite), `images` and
            `explained_variance` of the held-out images when so many images were seen, and `unseen`, the share of cells
            that the MLLM was not shown.

        Raises:
            InnerVisionError: there is nothing to explain, or states are not finite.
        """
        features = self._total_features()
        for name, each in features.items():
            self._check_features(name, each)
            self.banks[name].mean.copy_(each.mean([FIT, HELD_OUT]).view(self.banks[name].mean.shape))
        mine: dict[str, dict[int, Any]] = {name: {} for name in self.banks}
        with self.phases.bar("solving", len(self._mine()), "systems") as bar:
            for layer, states in self._total_states(features):
                with self.phases.work("solving", 1):
                    for name, choice in choose(states, {name: features[name] for name in states.targets}).items():
                        mine[name][layer] = self._finish_layer(name, layer, states, features[name], choice)
                bar.update()
        for owner, (layer, cells) in self._owners():
            for name in self._readings()[cells]:
                probe = self._probe(name, layer)
                found = self.rank.bring(on_cpu(probe.state_dict()), owner)
                if found is not None and owner > 0:
                    probe.load_state_dict(found)
        told = self.mesh.all.exchange(mine)
        facts = {
            name: {layer: each[name][layer] for layer in self.layers for each in told if layer in each[name]}
            for name in self.banks
        }
        for name, by_layer in facts.items():
            for line in (_tell_unseen(name, by_layer), _advise(name, by_layer)):
                if line:
                    tell(line)
        return {name: {"held_out": by_layer} for name, by_layer in facts.items()}

    def state(self) -> dict[str, Any]:
        """Give the sums, and the solutions on the way."""
        features = self._total_features()
        states = {}
        for layer, cells in self.jobs:
            total = total_states(self.states[layer, cells], self._shifts(features, cells), self.rank, to=0)
            if self.rank.index == 0:
                sums = total.state_dict()
                states[f"{layer}/{cells}"] = on_cpu(sums) if self.mesh.all.count > 1 else sums
        parts = self.bring_parts((states, [self._bring_estimate(estimate) for estimate in self.estimates]))
        return {
            "features": {name: total.state_dict() for name, total in features.items()},
            "states": {key: each for of_states, _ in parts for key, each in of_states.items()},
            "estimates": [_join_layers(of_parts) for of_parts in zip(*(each for _, each in parts), strict=True)],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See `Learner.load_state`."""
        if self.rank.index == 0:  # which goes on with what all have summed
            for name, sums in state["features"].items():
                self.features[name].load_state_dict(sums)
            for layer, cells in self.jobs:
                self.states[layer, cells].load_state_dict(state["states"][f"{layer}/{cells}"])
        self.estimates = [
            {
                "images": estimate["images"],
                "solutions": {
                    name: {layer: by_layer[layer] for layer, cells in self._mine() if name in self._readings()[cells]}
                    for name, by_layer in estimate["solutions"].items()
                },
            }
            for estimate in state["estimates"]
        ]

    def _readings(self) -> dict[int, list[str]]:
        """Give the targets that share the states in so many cells."""
        return {cells: [name for name in self.cells if self.cells[name] == cells] for cells in self.cells.values()}

    def _probe(self, name: str, layer: int) -> Ridge:
        probe = self.banks[name].probes[str(layer)]
        assert isinstance(probe, Ridge)
        return probe

    def _owners(self) -> list[tuple[int, tuple[int, int]]]:
        """Give for each job the index of the process that does it."""
        return [(number % self.rank.count, job) for number, job in enumerate(self.jobs)]

    def _mine(self) -> list[tuple[int, int]]:
        """Give the jobs of this process."""
        return [job for owner, job in self._owners() if owner == self.rank.index]

    def _total_features(self) -> dict[str, FeatureMoments]:
        return {name: total_features(self.features[name], self.rank) for name in self.banks}

    def _shifts(self, totals: Mapping[str, FeatureMoments], cells: int) -> dict[str, Tensor]:
        return {name: self.features[name].pivot - totals[name].pivot for name in self._readings()[cells]}

    def _total_states(self, features: Mapping[str, FeatureMoments]) -> Iterator[tuple[int, StateMoments]]:
        """Give the layers that this process solves, each with the sums of all processes.

        Each process has one layer at a time, so that all solve at once.

        Raises:
            InnerVisionError: states are not finite.
        """
        owners = self._owners()
        for start in range(0, len(owners), self.rank.count):
            mine = []
            for owner, (layer, cells) in owners[start : start + self.rank.count]:
                total = total_states(self.states[layer, cells], self._shifts(features, cells), self.rank, to=owner)
                if owner == self.rank.index:
                    mine.append((layer, total))
            for layer, total in mine:
                _check_states(layer, total)
                yield layer, total

    def _finish_layer(
        self, name: str, layer: int, states: StateMoments, features: FeatureMoments, choice: Choice
    ) -> dict[str, Any]:
        """Solve for a target over all images, set the probe, and say what the held-out images tell."""
        curve = []
        for estimate in self.estimates:
            kept = (tensor.to(choice.solution.weight) for tensor in estimate["solutions"][name][layer])
            curve.append((estimate["images"], Solution(*kept).less_pivots(states, features)))
        curve.append((self.count, choice.solution))
        solution = solve(states, features, name, choice.penalty).with_pivots(states, features)
        self._probe(name, layer).set_solution(solution.weight, solution.states_mean, solution.features_mean)
        return {
            "penalty": None if math.isinf(choice.penalty) else choice.penalty,
            "images": [count for count, _ in curve],
            "explained_variance": [solution.explained(name, states, features, [HELD_OUT]) for _, solution in curve],
            "unseen": 1 - float(states.counts.sum() / (features.images.sum() * len(states.pivot))),
        }

    def _estimate(self) -> None:
        """Solve for what was seen so far, and keep the maps: they are scored once all held-out images were seen."""
        features = self._total_features()
        if not all(bool((each.images > 0).all()) for each in features.values()):
            self.phases.skip("solving", len(self._mine()))
            return
        solutions: dict[str, dict[int, tuple[Tensor, ...]]] = {name: {} for name in self.banks}
        with self.phases.work("solving", len(self._mine())):
            for layer, states in self._total_states(features):
                for name, choice in choose(states, {name: features[name] for name in states.targets}).items():
                    found = choice.solution.with_pivots(states, features[name])
                    kept = (found.weight.float(), found.states_mean, found.features_mean)
                    solutions[name][layer] = tuple(tensor.cpu() for tensor in kept)
        self.estimates.append({"images": self.count, "solutions": solutions})

    def _bring_estimate(self, estimate: Mapping[str, Any]) -> dict[str, Any]:
        """Give the first process the solutions of all."""
        solutions: dict[str, dict[int, Any]] = {name: {} for name in self.banks}
        for owner, (layer, cells) in self._owners():
            for name in self._readings()[cells]:
                solutions[name][layer] = self.rank.bring(estimate["solutions"][name].get(layer), owner)
        return {"images": estimate["images"], "solutions": solutions}

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


def _join_layers(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join solutions for other layers over the same images."""
    names = parts[0]["solutions"]
    solutions = {name: {k: v for part in parts for k, v in part["solutions"][name].items()} for name in names}
    return {"images": parts[0]["images"], "solutions": solutions}


def _sum_dtype(device: torch.device) -> torch.dtype:
    """Give the type of sums: float64 where it costs little."""
    return torch.float64 if device.type == "cpu" else torch.float32


def _check_states(layer: int, states: StateMoments) -> None:
    """See that a layer's sums are finite.

    Raises:
        InnerVisionError: they are not.
    """
    require(
        bool(states.products.isfinite().all()),
        f"layer {layer} has states that are not finite: try dtype=float32, or leave the layer out",
    )


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
    found = last_doubling(
        {layer: [*zip(each["images"], each["explained_variance"], strict=True)] for layer, each in by_layer.items()}
    )
    if found is None or found.gain <= STILL_GAINS:
        return None
    return (
        f"{name}: more images would help. From {found.before:,} to {found.after:,} images, the explained variance of "
        f"those held out rose by {found.gain:.3f} at layer {found.layer}, and by more than {STILL_GAINS} at "
        f"{found.rising} of {found.layers} layers"
    )
