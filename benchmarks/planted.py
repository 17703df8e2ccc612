"""Models of which it is known what probes must find, and what probes do find in them: the trials of the calibration."""

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from innervision import MLLM, ProbeBank, ProbeSettings, TrainSettings, load_targets
from innervision.config import VISION
from innervision.data.loader import Batch
from innervision.engine.session import Session
from innervision.engine.solver import Solver
from innervision.metrics.similarity import similarity
from innervision.probes.moments import FIT, HELD_OUT
from innervision.report.jackknife import difference, jackknife
from innervision.world.dataset import FIRST_INDEX
from innervision.world.scenes import render

EXPERTS = ("depth=world/depth", "seg=world/seg", "gen=world/gen")
COMPONENTS = 8
"""Principal components of an expert's features that make a target."""
SIZE = 112
"""Side of the scenes in pixels."""
BATCH = 32
"""Scenes in a batch; samples are made of whole batches."""
PROMPT = "Describe the image in two lines."
METRICS = ("centred_cosine", "explained_variance")

Sample = list[Batch]
"""Images: the MLLM's inputs, and in place of each expert's pixels the features themselves."""
Change = Callable[[Tensor, Tensor], Tensor]
"""Makes other states (B, T, D) of a layer's states and mask."""


@dataclass(frozen=True)
class Known:
    """A target whose features are in the batch."""

    name: str
    num_tokens: int
    width: int = COMPONENTS
    kind: str = "known"
    expert: str = "known"
    revision: str | None = None

    def encode(self, features: Tensor) -> Tensor:
        """Give the features (B, N, C)."""
        return features


class Changed:
    """An MLLM of which one layer can be changed; that layer's states are shown as they are after the change."""

    def __init__(self, mllm: MLLM) -> None:
        """Wrap a model that is not changed yet."""
        self.mllm = mllm
        self.changes: dict[int, Change] = {}

    def __getattr__(self, name: str) -> Any:
        """Give all else as the model has it."""
        return getattr(self.mllm, name)

    def visit(self, inputs: Any, visitor: Any, layers: Sequence[int], *, tokens: Any = "all") -> None:
        """See `MLLM.visit`."""

        def show(layer: int, states: Tensor, mask: Tensor) -> Tensor | None:
            changed = self.changes[layer](states, mask) if layer in self.changes else None
            visitor(layer, states if changed is None else changed, mask)
            return changed

        self.mllm.visit(inputs, show, layers, tokens=tokens)


class StandIn:
    """States of noise, of four tokens; in one layer, if any, features are written into all of them by a random map."""

    name = "stand-in"
    revision = None
    device = torch.device("cpu")
    tokens = 4

    def __init__(self, num_layers: int, width: int, informed: int | None, seed: int) -> None:
        """Draw the map."""
        self.num_layers, self.size, self.informed = num_layers, width, informed
        self.random = torch.Generator().manual_seed(seed)
        self.mix = torch.randn(COMPONENTS, width, generator=self.random) / COMPONENTS**0.5

    def width(self, layer: int) -> int:
        """See `MLLM.width`."""
        return self.size

    def device_of(self, layer: int) -> torch.device:
        """See `MLLM.device_of`."""
        return self.device

    def visit(self, inputs: Tensor, visitor: Any, layers: Sequence[int], *, tokens: str = "all") -> None:
        """Show noise, and features (B, 1, C) where they are written; see `MLLM.visit`."""
        for layer in layers:
            states = torch.randn(len(inputs), self.tokens, self.size, generator=self.random)
            if layer == self.informed:
                states = states + inputs @ self.mix
            visitor(layer, states, torch.ones(states.shape[:2], dtype=torch.bool))


class World:
    """Scenes, `world/tuned`, and the principal components of three experts' features."""

    def __init__(self, eraser: int, train: int, val: int) -> None:
        """Render the scenes and encode them.

        Args:
            eraser: scenes from which it is learnt what to erase; the components are theirs, too.
            train: scenes that probes are fitted on.
            val: scenes that they are scored on.
        """
        self.mllm = Changed(MLLM.load("world/tuned", device="cpu"))
        self.layers = [VISION, *range(self.mllm.num_layers + 1)]
        experts = load_targets(list(EXPERTS), device="cpu")
        batches = []
        for first in tqdm(range(0, eraser + train + val, BATCH), desc="scenes", unit="batch", disable=None):
            indices = range(FIRST_INDEX["train"] + first, FIRST_INDEX["train"] + first + BATCH)
            images = [Image.fromarray(render(0, index, SIZE).image) for index in indices]
            features = {expert.name: expert.encode(images) for expert in experts}
            batches.append(Batch([str(i) for i in indices], self.mllm.prepare(images, PROMPT), features, bad=[]))
        ends = eraser // BATCH, (eraser + train) // BATCH
        for expert in experts:
            project_on_components(batches, expert.name, batches[: ends[0]])
        self.eraser, self.train, self.val = batches[: ends[0]], batches[ends[0] : ends[1]], batches[ends[1] :]
        targets: Any = [Known(expert.name, expert.num_tokens) for expert in experts]
        settings = TrainSettings(mllm="", images="", out="", tokens="image")
        mllm: Any = self.mllm
        self.session = Session(settings, mllm, targets, "train")
        self.plain = score(self.session, fit(self.session, self.train, self.layers)[0], self.val)
        """Of the model as it is; made first, so that places are found in it."""


def project_on_components(batches: Sample, target: str, of: Sample) -> None:
    """Replace features (B, N, C) by their first principal components about each cell's mean, of variance 1.

    Args:
        batches: are changed.
        target: whose features.
        of: the images whose components they are.
    """
    features = torch.cat([batch.pixels[target] for batch in of]).double()
    mean = features.mean(dim=0)
    away = (features - mean).flatten(0, 1)
    _, vectors = torch.linalg.eigh(away.T @ away)
    components = vectors[:, -COMPONENTS:].flip(1)
    components = components / (away @ components).std(dim=0)
    for batch in batches:
        batch.pixels[target] = ((batch.pixels[target].double() - mean) @ components).float()


def fit(session: Session, sample: Sample, layers: Sequence[int]) -> tuple[dict[str, ProbeBank], Solver]:
    """Fit exact probes on a sample, as `innervision train` does."""
    probe = ProbeSettings(kind="ridge")
    banks = {target.name: ProbeBank.for_models(session.mllm, target, layers, probe) for target in session.targets}
    solver = Solver(session, banks, layers, [name for batch in sample for name in batch.names])
    for batch in sample:
        solver.learn(batch)
        solver.finish_step()
    with contextlib.redirect_stdout(io.StringIO()):  # its advice to take more images
        solver.finish()
    return banks, solver


def score(session: Session, banks: dict[str, ProbeBank], sample: Sample) -> pd.DataFrame:
    """Score probes on a sample, as `innervision evaluate similarity` does: a row for each image and metric."""
    parts: list[pd.DataFrame] = []
    for batch in sample:

        def receive(target: str, layer: int, prediction: Tensor, batch: Batch = batch) -> None:
            found = similarity(prediction, batch.pixels[target], banks[target].mean)
            rows: dict[str, Any] = {"target": target, "source": "probe", "protocol": "standard", "layer": layer}
            parts.extend(
                pd.DataFrame(rows | {"metric": metric, "image": batch.names, "value": found[metric].numpy()})
                for metric in METRICS
            )

        session.predict(batch.inputs, banks, receive)
    return pd.concat(parts, ignore_index=True)


def intervals(scores: pd.DataFrame) -> pd.DataFrame:
    """Give the score of each target, metric and layer, and the ends of its 95% interval."""
    parts = []
    for series in jackknife(scores):
        low, high = series.interval(share=False)
        parts.append(series.rows.assign(score=series.score, low=low, high=high))
    table = pd.concat(parts, ignore_index=True)
    return table[table["layer"].notna()].reset_index(drop=True)


def explained(scores: pd.DataFrame, target: str) -> pd.Series:
    """Give a target's explained variance by layer."""
    rows = scores[(scores["target"] == target) & (scores["metric"] == "explained_variance")]
    return rows.groupby("layer")["value"].mean()


# A target erased from a layer


def erasing_projection(products: Tensor, with_features: Tensor) -> Tensor:
    """Give the projection P (D, D) of LEACE, the least change that leaves no linear map to the features.

    x - P (x - E x) has no covariance with the features; see theorem 4.3 of "LEACE: Perfect linear concept erasure in
    closed form" (https://arxiv.org/abs/2306.03819), where the rest, I - P, is I - W⁺ P_{WΣ} W with W = Σxx^(-1/2).

    Args:
        products: (D, D), the covariance of the states, or any multiple of it.
        with_features: (D, C), their covariance with the features, or the same multiple of it.
    """
    values, vectors = torch.linalg.eigh(products)
    kept = values > 1e-9 * values[-1]
    roots, vectors = values[kept].sqrt(), vectors[:, kept]
    whiten = (vectors / roots) @ vectors.T
    unwhiten = (vectors * roots) @ vectors.T
    left, size, _ = torch.linalg.svd(whiten @ with_features, full_matrices=False)
    left = left[:, size > 1e-9 * size[0]]
    return unwhiten @ left @ left.T @ whiten


def erase(world: World, trials: int, rng: np.random.Generator) -> pd.DataFrame:
    """Erase a target from a layer, both drawn at random without repeats, and give what probes then explain.

    It is learnt from scenes of its own what to erase, in the cells that the probe reads; it is erased from every image
    token, about the mean of its position.

    Returns:
        target, layer; the explained variance there `before` and `after`, its interval (`low`, `high`) after, the most
        that an earlier layer changed (`earlier`), what the `next` and the `last` layer explain and explained before,
        and the share of the other targets' explained variance that the layer keeps (`others`). A row for each trial.
    """
    parts = [FIT, HELD_OUT]
    _, solver = fit(world.session, world.eraser, world.layers)
    means = token_means(world)
    names = [target.name for target in world.session.targets]
    choices = [(target, layer) for target in names for layer in world.layers]
    rows = []
    for choice in tqdm(rng.permutation(len(choices))[:trials], desc="erasing", unit="trial", disable=None):
        target, layer = choices[choice]
        states: Any = solver.states[layer, solver.cells[target]]
        features: Any = solver.features[target]
        mean, features_mean = states.states_mean(parts), features.mean(parts) - features.pivot
        projection = erasing_projection(
            states.about(mean, parts), states.about_with(target, mean, features_mean, parts)
        )

        def change(
            states: Tensor, mask: Tensor, mean: Tensor = means[layer], projection: Tensor = projection
        ) -> Tensor:
            states = states.double()
            return torch.where(mask[..., None], states - (states - mean) @ projection.T, states)

        world.mllm.changes = {layer: change}
        scores = score(world.session, fit(world.session, world.train, world.layers)[0], world.val)
        world.mllm.changes = {}
        before, after = explained(world.plain, target), explained(scores, target)
        interval = intervals(scores[(scores["target"] == target) & (scores["metric"] == "explained_variance")])
        there = interval[interval["layer"] == layer].iloc[0]
        kept = [
            explained(scores, other)[layer] / explained(world.plain, other)[layer] for other in names if other != target
        ]
        later = [each for each in world.layers if each > layer]
        row = {"target": target, "layer": layer, "before": before[layer], "after": after[layer]}
        row |= {"low": there["low"], "high": there["high"], "others": float(np.mean(kept))}
        row["earlier"] = float((after - before)[after.index < layer].abs().max()) if layer > VISION else 0.0
        for name, place in (("next", 0), ("last", -1)):
            row[name] = after[later[place]] if later else np.nan
            row[f"{name} before"] = before[later[place]] if later else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def token_means(world: World) -> dict[int, Tensor]:
    """Give the mean states (T, D) of each token and layer, over the scenes from which it is learnt what to erase."""
    sums: dict[int, Any] = dict.fromkeys(world.layers, 0)

    def add(layer: int, states: Tensor, mask: Tensor) -> None:
        sums[layer] = sums[layer] + states.double().sum(dim=0)

    for batch in world.eraser:
        world.mllm.mllm.visit(batch.inputs, add, world.layers)
    images = sum(len(batch.names) for batch in world.eraser)
    return {layer: total / images for layer, total in sums.items()}


# A target written into a layer of noise


def write(world: World, trials: int, rng: np.random.Generator) -> pd.DataFrame:
    """Write a target into one of nine layers of noise; give the layer, the one found, its and the others' most."""
    rows = []
    for _ in tqdm(range(trials), desc="writing", unit="trial", disable=None):
        layer = int(rng.integers(9))
        mllm = StandIn(8, 32, layer, int(rng.integers(2**31)))
        found = explained(_stand_in_scores(mllm, world.train, world.val), "gen")
        others = found.drop(layer)
        best = found.index[int(found.argmax())]
        rows.append({"layer": layer, "found": best, "explained": found[layer], "others": others.max()})
    return pd.DataFrame(rows)


def _stand_in_scores(mllm: StandIn, train: Sample, val: Sample) -> pd.DataFrame:
    """Probe a stand-in for the target of one cell, whose features are what it is shown."""
    models: Any = {"mllm": mllm, "targets": [Known("gen", 1)]}
    session = Session(TrainSettings(mllm="", images="", out=""), script="train", **models)
    shown = [[replace(batch, inputs=batch.pixels["gen"]) for batch in sample] for sample in (train, val)]
    return score(session, fit(session, shown[0], range(mllm.num_layers + 1))[0], shown[1])


# Noise alone


def noise(world: World, trials: int, rng: np.random.Generator) -> pd.DataFrame:
    """Probe noise: 64 images to fit, 50 to score, drawn anew for each trial. Give scores and their intervals."""
    features = torch.cat([batch.pixels["gen"] for batch in world.eraser])
    parts = []
    for _ in tqdm(range(trials), desc="noise", unit="trial", disable=None):
        chosen = torch.from_numpy(rng.permutation(len(features))[:114])
        sample = [
            Batch([str(int(i)) for i in rows], None, {"gen": features[rows]}, bad=[])
            for rows in (chosen[:64], chosen[64:])
        ]
        mllm = StandIn(0, 16, None, int(rng.integers(2**31)))
        parts.append(intervals(_stand_in_scores(mllm, sample[:1], sample[1:])))
    return pd.concat(parts, ignore_index=True)


# Features of other images


def permute(world: World, permutations: int, rng: np.random.Generator) -> pd.DataFrame:
    """Pair the states of each image with the features of another, in fitting and in scoring; give the intervals."""
    parts = []
    for _ in tqdm(range(permutations), desc="permuting", unit="trial", disable=None):
        train, val = (_permuted(sample, rng) for sample in (world.train, world.val))
        parts.append(intervals(score(world.session, fit(world.session, train, world.layers)[0], val)))
    return pd.concat(parts, ignore_index=True)


def _permuted(sample: Sample, rng: np.random.Generator) -> Sample:
    """Shift the features along a random order of the images, so that none keeps its own."""
    order = rng.permutation(sum(len(batch.names) for batch in sample))
    source = np.empty_like(order)
    source[order] = np.roll(order, 1)
    mixed: dict[str, Any] = {}
    for name in sample[0].pixels:
        whole = torch.cat([batch.pixels[name] for batch in sample])[source]
        mixed[name] = whole.split([len(batch.names) for batch in sample])
    return [replace(batch, pixels={name: mixed[name][i] for name in mixed}) for i, batch in enumerate(sample)]


# A growing sample


def grow(world: World) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Fit on ever more images, each time twice as many.

    Returns:
        Explained variance by target and layer (rows) and number of images (columns); and, of each sample but the
        whole, the paired difference to the whole with its interval.
    """
    sizes = [len(world.train) >> halvings for halvings in range(5, -1, -1) if len(world.train) >> halvings]
    curves, differences = {}, []
    only = world.plain["metric"] == "explained_variance"
    whole = {series.rows["target"].iloc[0]: series for series in jackknife(world.plain[only])}
    for size in tqdm(sizes[:-1], desc="growing", unit="sample", disable=None):
        scores = score(world.session, fit(world.session, world.train[:size], world.layers)[0], world.val)
        scores = scores[scores["metric"] == "explained_variance"]
        curves[size * BATCH] = scores.groupby(["target", "layer"])["value"].mean()
        for series in jackknife(scores):
            found = difference(series, whole[series.rows["target"].iloc[0]], share=False)
            differences.append(found[found["layer"].notna()].assign(size=size * BATCH))
    curves[len(world.train) * BATCH] = world.plain[only].groupby(["target", "layer"])["value"].mean()
    return pd.DataFrame(curves), pd.concat(differences, ignore_index=True)
