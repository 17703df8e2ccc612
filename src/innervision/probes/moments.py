"""The sums that an exact probe is solved from.

They are taken in one pass over the images, and add up over batches, processes and machines. A fifth of the images is
held out: its sums are kept apart (`HELD_OUT`), and tell from themselves alone, for any map and any means, what the map
explains of those images. All sums are about pivots, near which the values lie, so that nothing cancels.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

FIT, HELD_OUT = 0, 1
"""Where sums of the two parts of the images stand."""

PENALTIES = [10.0**exponent for exponent in range(-7, 2)]
"""λ for each cell of the images, among which the held-out images choose, beside an infinite one."""

CONSTANT = 1e-6
"""A column of states whose standard deviation is a smaller share of its root mean square carries nothing: float32
itself knows values no better."""


BLOCKS = 8
"""Of columns, by which products are computed: of 64 blocks of products, the 36 on and above the diagonal are."""


def held_out_fifth(names: Iterable[str]) -> set[str]:
    """Choose the images that choose the penalty: the fifth of them, one at least, whose names have the lowest hash."""
    by_hash = sorted(names, key=lambda name: sha256(name.encode(errors="surrogateescape")).digest())
    return set(by_hash[: max(1, len(by_hash) // 5)])


class FeatureMoments(nn.Module):
    """Sums over a target's features, of all cells."""

    pivot: Tensor  # (N, C)
    sums: Tensor  # (2, N, C)
    squares: Tensor  # (2,)
    images: Tensor  # (2,)

    def __init__(self, num_cells: int, width: int, dtype: torch.dtype) -> None:
        """Make room on the device "meta": `to_empty` brings it elsewhere, and then all must be set to 0."""
        super().__init__()
        options: Any = {"dtype": dtype, "device": "meta"}
        self.register_buffer("pivot", torch.zeros(num_cells, width, **options))
        self.register_buffer("sums", torch.zeros(2, num_cells, width, **options))
        self.register_buffer("squares", torch.zeros(2, **options))
        self.register_buffer("images", torch.zeros(2, **options))

    def add(self, features: Tensor, held_out: Tensor) -> Tensor:
        """Add images' features (B, N, C), where `held_out` (B,) says of which part each is.

        Returns:
            The features less the pivot, in the type of the sums.
        """
        features, held_out = features.to(self.sums), held_out.to(self.sums.device)
        if not self.images.any():
            self.pivot.copy_(features.mean(dim=0))
        away = features - self.pivot
        for part, rows in enumerate((~held_out, held_out)):
            self.sums[part] += away[rows].sum(dim=0)
            self.squares[part] += away[rows].square().sum()
            self.images[part] += rows.sum()
        return away

    def move(self, pivot: Tensor) -> None:
        """Let the sums be about another pivot (N, C)."""
        shift = self.pivot - pivot
        for part, images in enumerate(self.images):
            self.squares[part] += 2 * (self.sums[part] * shift).sum() + images * shift.square().sum()
            self.sums[part] += images * shift
        self.pivot.copy_(pivot)

    def mean(self, parts: list[int]) -> Tensor:
        """Give the mean features over the images of some parts.  # (N, C) float64"""
        return _double(self.pivot) + _features_mean(self, parts)

    def varies(self) -> bool:
        """Tell whether the features differ between images."""
        return _variance(self, _features_mean(self, [FIT, HELD_OUT]), [FIT, HELD_OUT]) > 0


class StateMoments(nn.Module):
    """Sums over one layer's states in N cells, and over their products with the features of targets."""

    pivot: Tensor  # (N, D)
    counts: Tensor  # (2, N)
    sums: Tensor  # (2, N, D)
    products: Tensor  # (2, D, D), of which the upper triangle counts

    def __init__(self, num_cells: int, width: int, targets: dict[str, int], dtype: torch.dtype) -> None:
        """Make room as `FeatureMoments` does; `targets` gives the width C of each target's features by its name."""
        super().__init__()
        options: Any = {"dtype": dtype, "device": "meta"}
        self.targets = targets
        self.register_buffer("pivot", torch.zeros(num_cells, width, **options))
        self.register_buffer("counts", torch.zeros(2, num_cells, **options))
        self.register_buffer("sums", torch.zeros(2, num_cells, width, **options))
        self.register_buffer("products", torch.zeros(2, width, width, **options))
        for name, features in targets.items():
            self.register_buffer(f"sums of {name}", torch.zeros(2, num_cells, features, **options))
            self.register_buffer(f"products with {name}", torch.zeros(2, width, features, **options))

    def add(
        self, states: Tensor, seen: Tensor, features: dict[str, Tensor], held_out: Tensor, product_dtype: torch.dtype
    ) -> None:
        """Add images.

        Args:
            states: (B, N, D) float32, in each cell.
            seen: (B, N) bool, True = a cell that is seen; the others are left out.
            features: of each target (B, N, C), less its pivot.
            held_out: (B,) bool, of which part each image is.
            product_dtype: of the factors of products.
        """
        if not self.counts.any():
            self.pivot.copy_(_cell_means(states.to(self.sums), seen))
        away = (states - self.pivot).mul_(seen[..., None])
        held_out = held_out.to(seen.device)
        for part, rows in enumerate((~held_out, held_out)):
            left = away[rows]
            self.counts[part] += seen[rows].sum(dim=0)
            self.sums[part] += left.sum(dim=0)
            factor = left.flatten(0, 1).to(product_dtype)
            for start, stop in _blocks(factor.shape[1]):
                self.products[part, start:stop, start:] += _product(factor[:, start:stop], factor[:, start:])
            for name, values in features.items():
                right = values[rows] * seen[rows][..., None]
                self.get_buffer(f"sums of {name}")[part] += right.sum(dim=0)
                self.get_buffer(f"products with {name}")[part] += _product(factor, right.flatten(0, 1))

    def move(self, pivot: Tensor, shifts: Mapping[str, Tensor]) -> None:
        """Let the sums be about another pivot (N, D), and about other pivots of the features.

        Args:
            pivot: of the states.
            shifts: for each target the pivot of its features until now less the new one, (N, C).
        """
        shift = self.pivot - pivot
        for part, counts in enumerate(self.counts):
            weighted = shift * counts[:, None]
            for name, of_features in shifts.items():
                sums = self.get_buffer(f"sums of {name}")[part]
                products = self.get_buffer(f"products with {name}")[part]
                products += shift.T @ sums + (self.sums[part] + weighted).T @ of_features
                sums += of_features * counts[:, None]
            cross = self.sums[part].T @ shift
            self.products[part] += cross + cross.T + weighted.T @ shift
            self.sums[part] += weighted
        self.pivot.copy_(pivot)

    def operations(self) -> int:
        """Count the operations for the products of one image."""
        cells, width = self.pivot.shape
        columns = sum((stop - start) * (width - start) for start, stop in _blocks(width))
        return 2 * cells * (columns + width * sum(self.targets.values()))

    def solution_bytes(self) -> int:
        """Count the bytes of the solutions for all targets, weights in float32 and means in float64."""
        cells, width = self.pivot.shape
        return sum(4 * width * features + 8 * cells * (width + features) for features in self.targets.values())

    def states_mean(self, parts: list[int]) -> Tensor:
        """Give the mean states in each cell over the images that show it, less the pivot.  # (N, D) float64

        A cell that no image shows has the mean over all cells.
        """
        counts, sums, pivot = _total(self.counts, parts)[:, None], _total(self.sums, parts), _double(self.pivot)
        everywhere = (sums + counts * pivot).sum(dim=0) / counts.sum().clamp(min=1)
        return torch.where(counts > 0, sums / counts.clamp(min=1), everywhere - pivot)

    def about(self, states_mean: Tensor, parts: list[int]) -> Tensor:
        """Give the products of states with each other about means (N, D) less the pivot.  # (D, D) float64"""
        counts, sums, products = (_total(each, parts) for each in (self.counts, self.sums, self.products))
        products = products.triu() + products.triu(1).T
        cross = sums.T @ states_mean
        return products - cross - cross.T + (states_mean * counts[:, None]).T @ states_mean

    def about_with(self, name: str, states_mean: Tensor, features_mean: Tensor, parts: list[int]) -> Tensor:
        """Give the products of states with a target's features about both their means.  # (D, C) float64

        Args:
            name: of the target.
            states_mean: (N, D), less the pivot.
            features_mean: (N, C), less the target's pivot.
            parts: of the images.
        """
        counts, sums = _total(self.counts, parts), _total(self.sums, parts)
        of_features = _total(self.get_buffer(f"sums of {name}"), parts)
        products = _total(self.get_buffer(f"products with {name}"), parts)
        weighted = states_mean * counts[:, None]
        return products - sums.T @ features_mean - states_mean.T @ of_features + weighted.T @ features_mean


@dataclass(frozen=True)
class Solution:
    """An exact probe: prediction = features_mean + (states - states_mean) weight."""

    weight: Tensor  # (D, C) float64
    states_mean: Tensor  # (N, D)
    """Less the pivot."""
    features_mean: Tensor  # (N, C)
    """Less the pivot."""

    def explained(self, name: str, states: StateMoments, features: FeatureMoments, parts: list[int]) -> float:
        """Give the share of the variance about the means that the map explains, of some parts of the images.

        It is 1 - Σ|y - prediction|² / Σ|y - features_mean|² over all cells; in those that are not seen the prediction
        is the mean. NaN where there is nothing to explain.
        """
        products = states.about(self.states_mean, parts)
        with_features = states.about_with(name, self.states_mean, self.features_mean, parts)
        return _explained(self.weight, products, with_features, _variance(features, self.features_mean, parts))

    def with_pivots(self, states: StateMoments, features: FeatureMoments) -> "Solution":
        """Give the same with means that stand for themselves: sums of more images may be about other pivots."""
        states_mean = _double(states.pivot) + self.states_mean
        return Solution(self.weight, states_mean, _double(features.pivot) + self.features_mean)

    def less_pivots(self, states: StateMoments, features: FeatureMoments) -> "Solution":
        """Undo `with_pivots`, for the pivots of these sums."""
        states_mean = self.states_mean - _double(states.pivot)
        return Solution(self.weight, states_mean, self.features_mean - _double(features.pivot))


@dataclass(frozen=True)
class Choice:
    """A solution over the images of one part, with the penalty that explains most of the other."""

    solution: Solution
    penalty: float
    """λ for states of unit variance; infinite where no map explains anything, and the weights are 0."""
    explained: float
    """Of the images held out."""


def choose(states: StateMoments, features: dict[str, FeatureMoments]) -> dict[str, Choice]:
    """Solve for each target over the fitted images, with the penalty that explains most of those held out."""
    mean = states.states_mean([FIT])
    fitted, held_out = states.about(mean, [FIT]), states.about(mean, [HELD_OUT])
    rows = float(states.counts[FIT].sum())
    found: dict[str, Choice] = {}
    sums: dict[str, tuple[Tensor, Tensor, float]] = {}
    for name in states.targets:
        features_mean = _features_mean(features[name], [FIT])
        of_fitted, of_held_out = (states.about_with(name, mean, features_mean, [part]) for part in (FIT, HELD_OUT))
        variance = _variance(features[name], features_mean, [HELD_OUT])
        sums[name] = of_fitted, of_held_out, variance
        nothing = Solution(torch.zeros_like(of_fitted), mean, features_mean)
        found[name] = Choice(nothing, math.inf, 0.0 if variance > 0 else math.nan)
    system = _System(fitted, states, mean, rows)
    for penalty in (share * rows for share in PENALTIES):
        weights = system.solve([sums[name][0] for name in states.targets], penalty)
        if weights is None:
            continue
        for name, weight in zip(states.targets, weights, strict=True):
            _, with_features, variance = sums[name]
            explained = _explained(weight, held_out, with_features, variance)
            if explained > found[name].explained:
                found[name] = Choice(Solution(weight, mean, found[name].solution.features_mean), penalty, explained)
    return found


def solve(states: StateMoments, features: FeatureMoments, name: str, penalty: float) -> Solution:
    """Solve for a target over all images, with a given penalty λ.

    The states are standardised: centred about the mean of their cell, and divided by the standard deviation of each
    column over all cells.

    Raises:
        ValueError: rounding of the sums is larger than the penalty.
    """
    parts = [FIT, HELD_OUT]
    mean, features_mean = states.states_mean(parts), _features_mean(features, parts)
    with_features = states.about_with(name, mean, features_mean, parts)
    if math.isinf(penalty):
        return Solution(torch.zeros_like(with_features), mean, features_mean)
    rows = float(states.counts.sum())
    weights = _System(states.about(mean, parts), states, mean, rows).solve([with_features], penalty)
    if weights is None:
        raise ValueError(f"the products of states are too inexact for a penalty of {penalty:g}")
    return Solution(weights[0], mean, features_mean)


class _System:
    """The left side of the normal equations, over standardised states."""

    def __init__(self, products: Tensor, states: StateMoments, mean: Tensor, rows: float) -> None:
        """Standardise products of states (D, D) about their means over a number of cells of all images."""
        deviation = (products.diagonal() / max(rows, 1)).clamp(min=0).sqrt()  # (D,)
        level = (_double(states.pivot) + mean).square().mean(dim=0)  # (D,): the part that is the same in all images
        self.kept = deviation > CONSTANT * (deviation.square() + level).sqrt()
        self.deviation = deviation[self.kept]
        self.products = products[self.kept][:, self.kept] / (self.deviation[:, None] * self.deviation)

    def solve(self, with_features: list[Tensor], penalty: float) -> list[Tensor] | None:
        """Give the map (D, C) of each target, of states that are not standardised; None where rounding hides it."""
        left = self.products + penalty * torch.eye(len(self.products), dtype=torch.float64, device=self.products.device)
        right = torch.cat([each[self.kept] for each in with_features], dim=1) / self.deviation[:, None]
        factor, failed = torch.linalg.cholesky_ex(left)
        if failed:
            return None
        found = torch.cholesky_solve(right, factor) / self.deviation[:, None]
        solutions = []
        for each, weight in zip(with_features, found.split([each.shape[1] for each in with_features], 1), strict=True):
            full = torch.zeros_like(each)
            full[self.kept] = weight
            solutions.append(full)
        return solutions


def _explained(weight: Tensor, products: Tensor, with_features: Tensor, variance: float) -> float:
    if not variance > 0:
        return math.nan
    return float(2 * (weight * with_features).sum() - (weight * (products @ weight)).sum()) / variance


def _features_mean(features: FeatureMoments, parts: list[int]) -> Tensor:
    return _total(features.sums, parts) / _total(features.images, parts).clamp(min=1)


def _variance(features: FeatureMoments, mean: Tensor, parts: list[int]) -> float:
    """Give Σ|y - mean|² over some parts of the images; rounding leaves a little where all are alike."""
    squares, sums, images = (_total(each, parts) for each in (features.squares, features.sums, features.images))
    variance = squares - 2 * (sums * mean).sum() + images * mean.square().sum()
    level = images * (_double(features.pivot) + mean).square().sum()
    return float(variance) if variance > CONSTANT**2 * level else 0.0


def _cell_means(states: Tensor, seen: Tensor) -> Tensor:
    """Give the mean of states (B, N, D) in each cell over the images that show it; in other cells, over all cells."""
    counts = seen.sum(dim=0)[:, None]  # (N, 1)
    sums = (states * seen[..., None]).sum(dim=0)  # (N, D)
    return torch.where(counts > 0, sums / counts.clamp(min=1), sums.sum(dim=0) / counts.sum().clamp(min=1))


def _blocks(width: int) -> Iterator[tuple[int, int]]:
    """Give where blocks of columns start and stop: each is multiplied with the columns from its start on alone.

    Products of states with each other are symmetric, so that blocks below the diagonal need not be computed.
    """
    step = math.ceil(width / BLOCKS)
    return ((start, min(start + step, width)) for start in range(0, width, step))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply (R, D) and (R, C) over the rows; the sums have full precision whatever the factors have."""
    right = right.to(left.dtype)
    if left.dtype in (torch.bfloat16, torch.float16) and left.device.type == "cuda":
        return torch.mm(left.T, right, out_dtype=torch.float32)
    return left.T @ right


def _total(sums: Tensor, parts: list[int]) -> Tensor:
    return _double(sums[parts]).sum(dim=0)


def _double(tensor: Tensor) -> Tensor:
    """Give the tensor in float64, where its device has that, else on the CPU."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()
