"""Shared fixtures. One thread unless OMP_NUM_THREADS says otherwise: `make test` uses the cores for two processes."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Reference numbers and real images, where this checkout has them beside it; tests that need them skip else."""


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the folder with reference numbers and real images is not here")
    return SHARED


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute in one thread, as the processes do that a test starts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def plain_attention() -> Iterator[None]:
    """Compute attention by plain matrix products.

    PyTorch's fused kernel fails in bfloat16 on a processor with AMX where ATEN_CPU_CAPABILITY asks for older
    instructions: "pack_vnni2 is only supported when avx512 is supported".
    """
    with sdpa_kernel(SDPBackend.MATH):
        yield
