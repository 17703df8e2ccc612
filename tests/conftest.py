"""Shared fixtures. Two threads unless OMP_NUM_THREADS says otherwise, so that a run on two cores does not crowd."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Reference numbers and real images, where this checkout has them beside it; tests that need them skip else."""


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the folder with reference numbers and real images is not here")
    return SHARED
