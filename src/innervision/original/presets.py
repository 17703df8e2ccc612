"""The experiments of the paper (arXiv:2412.09585) as settings; what they leave out is --mllm, --images and --out."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    f"paper-{target}": {
        "protocol": "paper",
        "targets": target,
        "layers": "decoder",
        "prompt": "Describe the image in two lines.",
        "probe": {"kind": "resampler", "positions": False, "depth": 1, "heads": 4, "dim_head": 32, "ff_mult": 1},
        "epochs": 2,
        "batch_size": 256,
        "lr": 1e-3,
        "weight_decay": 0.0,
        "warmup": 0.03,
    }
    for target in ("depth", "seg", "gen")
}
"""By the name that `--preset` takes."""
