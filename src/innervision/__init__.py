"""InnerVision shows what a multimodal LLM sees, layer by layer.

The public names below are imported when they are first used, so that `import innervision` and the command line's
help stay fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from innervision.config import EvaluateSettings, ProbeSettings, TrainSettings
    from innervision.engine.evaluate import evaluate_similarity
    from innervision.engine.fit import fit
    from innervision.errors import InnerVisionError
    from innervision.mllm import MLLM
    from innervision.probes import ProbeBank
    from innervision.report.figures import plot_curves
    from innervision.targets import load_targets
    from innervision.targets.target import Target

__version__ = "0.1.0"

__all__ = [
    "MLLM",
    "EvaluateSettings",
    "InnerVisionError",
    "ProbeBank",
    "ProbeSettings",
    "Target",
    "TrainSettings",
    "evaluate_similarity",
    "fit",
    "load_targets",
    "plot_curves",
]

_MODULES = {
    "config": ("EvaluateSettings", "ProbeSettings", "TrainSettings"),
    "errors": ("InnerVisionError",),
    "engine.evaluate": ("evaluate_similarity",),
    "mllm": ("MLLM",),
    "probes": ("ProbeBank",),
    "report.figures": ("plot_curves",),
    "targets": ("load_targets",),
    "targets.target": ("Target",),
    "engine.fit": ("fit",),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"innervision.{module}"), name)
    raise AttributeError(f"module 'innervision' has no attribute {name!r}")
