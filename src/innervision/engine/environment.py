"""What machine and which packages make a run's numbers."""

import os
import platform
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from PIL import features

PACKAGES = (
    "innervision",
    "torch",
    "torchvision",
    "transformers",
    "tokenizers",
    "diffusers",
    "accelerate",
    "safetensors",
    "numpy",
    "pillow",
)


def package_versions() -> dict[str, str]:
    """Give the versions of the packages that decide a run's numbers, and of Pillow's decoder of JPEG files."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    jpeg = "libjpeg_turbo" if features.check_feature("libjpeg_turbo") else "jpg"
    return versions | {jpeg: str(features.version(jpeg))}


def made_by() -> dict[str, str]:
    """Give the versions of packages and a hash of this package's own code: processes that work together share both."""
    root = Path(__file__).parents[1]
    code = sha256()
    for path in sorted(root.rglob("*.py")):
        code.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return {**package_versions(), "the code of innervision": code.hexdigest()[:16]}


def device_name(device: torch.device) -> str:
    """Name a device and what it is, such as `cuda:0 (NVIDIA H100)` or `cpu (AMD EPYC)`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({_processor()})"


def _processor() -> str:
    """Name the processor, as the system does where it tells, and the instructions that PyTorch uses."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if os.path.exists("/proc/cpuinfo") else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
