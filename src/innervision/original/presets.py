"""The experiments of the paper (arXiv:2412.09585) as settings; add --mllm, --images and --out."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    f"paper-{target}": {"protocol": "paper", "targets": target, "layers": "decoder", "probe": {"kind": "resampler"}}
    for target in ("depth", "seg", "gen")
}
"""By the name that `--preset` takes; all else is as in the paper by default. See `innervision.config`."""
