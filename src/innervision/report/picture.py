"""A picture of what the experts' heads make of every layer: truth, ceiling, layers and floor side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from innervision.files import atomic_write
from innervision.report.figures import STYLE, plain_text

if TYPE_CHECKING:  # they need what this does not
    from torch import Tensor

    from innervision.engine.decode import Decoded

Pixels = NDArray[np.floating[Any]]  # (H, W, 3), 0…1

_CELL = 0.66
"""Inches."""


def draw_layers(
    runs: Mapping[str, Mapping[str, "Decoded"]],
    truth: Mapping[str, NDArray[Any]],
    out: str | Path,
    classes: Sequence[tuple[str, Sequence[int]]],
) -> None:
    """Draw a PNG: for each target a row per run, with a column per layer, between truth and expert and the floor.

    Args:
        runs: label of each run -> what `decode_layers` gives.
        truth: of the targets to draw, by name, what is known. depth: (H, W), larger = closer; seg: (H, W), the class of
            each pixel; gen: (H, W, 3), the image, 0…1.
        out: the picture.
        classes: name and colour (0…255) of each class of seg.

    Raises:
        InnerVisionError: the file cannot be written.
    """
    colors = np.array([color for _, color in classes]) / 255
    layers = list(next(iter(runs.values()))[next(iter(truth))].layers)
    widths = [1, 1, 0.3, *[1] * len(layers), 0.1, 1]
    heights = [*[1] * len(runs), 0.15] * len(truth)
    width, height = sum(widths) + 0.5, sum(heights) + 1.2
    with matplotlib.rc_context({**STYLE, "font.size": 7, "axes.titlesize": 7}):
        figure = Figure(figsize=(_CELL * width, _CELL * height))
        grid = figure.add_gridspec(
            len(heights),
            len(widths),
            width_ratios=widths,
            height_ratios=heights,
            wspace=0.04,
            hspace=0.04,
            left=0.4 / width,
            right=1 - 0.1 / width,
            top=1 - 0.7 / height,
            bottom=0.4 / height,
        )
        figure.suptitle("what the expert makes of the prediction from each layer", fontsize=8, y=1 - 0.15 / height)

        def show(rows: int | slice, column: int, pixels: Pixels, title: str = "", side: str = "") -> None:
            axes = figure.add_subplot(grid[rows, column], xticks=[], yticks=[])
            axes.imshow(pixels)
            axes.spines[:].set_visible(False)
            first = rows if isinstance(rows, int) else rows.start
            axes.set_title(title if first == 0 else "", pad=3)
            axes.set_ylabel(side)

        for number, (target, known) in enumerate(truth.items()):
            top = number * (len(runs) + 1)
            all_runs = slice(top, top + len(runs))
            first = next(iter(runs.values()))[target]
            kind = first.kind
            show(all_runs, 0, _paint(kind, known, colors), "truth", plain_text(target))
            show(all_runs, 1, _paint(kind, _output(kind, first.expert), colors), "expert")
            if first.mean is not None:
                show(all_runs, len(widths) - 1, _paint(kind, _output(kind, first.mean), colors), "mean feature")
            for row, (label, decoded) in enumerate(runs.items(), top):
                for column, layer in enumerate(layers, 3):
                    pixels = _paint(kind, _output(kind, decoded[target].layers[layer]), colors)
                    name = {-1: "vision", 0: "emb"}.get(layer, str(layer))
                    show(row, column, pixels, name, plain_text(label) if column == 3 else "")
        if segs := [name for name in truth if next(iter(runs.values()))[name].kind == "seg"]:
            outputs = [each for decoded in runs.values() for name in segs for each in decoded[name].all()]
            maps = [*(truth[name] for name in segs), *(_output("seg", output) for output in outputs)]
            shown = sorted({int(label) for labels in maps for label in np.unique(labels)})
            present = [classes[label] for label in shown if label < len(classes)]
            handles = [Patch(color=tuple(np.array(color) / 255), label=plain_text(name)) for name, color in present]
            figure.legend(handles=handles, loc="lower center", ncols=len(present), handlelength=0.8)
        with atomic_write(Path(out)) as temporary:
            figure.savefig(temporary, dpi=150)


def _output(kind: str, output: "Tensor") -> NDArray[Any]:
    """Bring what `Target.decode` gives for an image to the form of the truth."""
    values = output.numpy()
    return values.argmax(0) if kind == "seg" else values.transpose(1, 2, 0) if kind == "gen" else values


def _paint(kind: str, values: NDArray[Any], colors: Pixels) -> Pixels:
    """Make colours of a depth map, stretched from its farthest to its closest point, of classes, or of an image."""
    if kind == "seg":
        return np.vstack([colors, np.ones(3)])[np.minimum(values, len(colors))]
    if kind == "depth":
        span = np.ptp(values)
        return matplotlib.colormaps["inferno"]((values - values.min()) / (span if span > 0 else 1))[..., :3]
    return values
