"""A training of tiny real models in one of several processes, in which something may happen."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from innervision.config import ProbeSettings, TrainSettings
from innervision.engine import processes
from innervision.engine.fit import fit
from innervision.mllm import MLLM
from innervision.targets.depth import DepthTarget
from innervision.targets.gen import GenTarget
from stand_ins import weights

Alone = Callable[[TrainSettings], str]
"""Gives the folder of the run that one process makes with some settings."""

RESAMPLER = ProbeSettings(kind="resampler", heads=2, dim_head=8)


class Trip:
    """A target with which something happens in one process when it encodes for the n-th time."""

    def __init__(self, target: Any, number: int, happens: str) -> None:
        self.target, self.number, self.happens, self.calls = target, number, happens, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        features = self.target.encode(pixels)
        if self.calls == self.number:
            if self.happens == "nan":
                return features / 0
            os.kill(os.getpid(), getattr(signal, self.happens))
        return features


def train(index: int, settings: TrainSettings, resume: bool = False, trips: dict | None = None) -> list[str]:
    """Train; `trips` gives for some processes when in their work something happens, and what."""
    processes.PULSE, processes.STALLED = 0.2, 5.0  # short, and long enough for a machine that does much else
    root = Path(settings.mllm).parent
    mllm = MLLM.load(settings.mllm, device="cpu") if settings.split_mllm == 1 else None
    depth = DepthTarget.load(str(root / "depth"), device="cpu", size=56)
    gen = GenTarget.load(str(root / "gen"), device="cpu")
    first = Trip(depth, *trips[index]) if trips and index in trips else depth
    return [*fit(settings, resume=resume, mllm=mllm, targets=[first, gen], progress=False)]


def train_differently(index: int, settings: TrainSettings) -> list[str]:
    """Train with another seed in each process."""
    return train(index, replace(settings, seed=index))


def assert_close(out: str, other: str, tolerance: float) -> None:
    """Every tensor differs by less than this share of its norm."""
    first, second = weights(out), weights(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        distance = (value.double() - second[key].double()).norm() / value.double().norm().clamp(min=1e-12)
        assert distance < tolerance, f"{key}: {distance:.2g}"
