"""A picture of what the experts' heads make of every layer: truth, ceiling, layers and floor side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import PIL.Image
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from innervision.data.depth_maps import in_tones_of
from innervision.files import atomic_write
from innervision.report.panels import STYLE, plain_text
from innervision.report.tables import layer_name

if TYPE_CHECKING:  # they need what this does not
    from torch import Tensor

    from innervision.engine.decode import Decoded

Pixels = NDArray[np.floating[Any]]  # (H, W, 3), 0…1

_CELL = 0.66
"""Inches."""

MOST_CLASSES = 10
"""Classes that the legend names, those of the largest area."""


def draw_layers(
    runs: Mapping[str, Mapping[str, "Decoded"]],
    known: Mapping[str, NDArray[Any]],
    out: str | Path,
    classes: Sequence[tuple[str, Sequence[int]]] | None = None,
    depth: NDArray[Any] | None = None,
) -> None:
    """Draw for each target a row per run, with a column per layer, between what is known, the expert and the floor.

    All depth maps of a target are on one scale: from the farthest to the closest point that the expert sees. A map that
    says little looks flat. The truth has the expert's values in its own order, see `innervision.data.depth_maps`.

    Args:
        runs: label of each run -> what `decode_layers` gives.
        known: of the targets to draw, by name, the truth, or a photograph (H, W, 3), 0…1. The truth of depth: (H, W),
            larger = farther, NaN where it is not known; of seg: (H, W), the class of each pixel; of gen: the image.
        out: the picture; its suffix decides the format (PNG, PDF, SVG …).
        classes: name and colour (0…255) of each class of seg; by default names of the expert, and colours as different
            as can be.
        depth: the truth of depth, in a column of its own beside the photographs.

    Raises:
        InnerVisionError: the file cannot be written.
    """
    named = next((output.labels for output in next(iter(runs.values())).values() if output.labels), ())
    classes = classes or [(name, color) for name, color in zip(named, _colors(len(named)), strict=True)]
    colors = np.array([color for _, color in classes]).reshape(-1, 3) / 255
    layers = list(next(iter(runs.values()))[next(iter(known))].layers)
    beside = 0 if depth is None else 1
    widths = [1, *[1] * beside, 1, 0.3, *[1] * len(layers), 0.1, 1]
    heights = [*[1] * len(runs), 0.15] * len(known)
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

        for number, (target, truth) in enumerate(known.items()):
            top = number * (len(runs) + 1)
            all_runs = slice(top, top + len(runs))
            first = next(iter(runs.values()))[target]
            kind = first.kind
            expert = _output(kind, first.expert)
            scale = (float(np.nanmin(expert)), float(np.nanmax(expert)))
            photograph = truth.ndim == 3
            if kind == "depth" and not photograph:
                truth = in_tones_of(truth, _resized(expert, truth.shape))
            shown = _paint("gen" if photograph else kind, truth, colors, scale)
            show(all_runs, 0, shown, "image" if photograph else "truth", plain_text(target))
            if depth is not None and kind == "depth":
                tones = in_tones_of(depth, _resized(expert, depth.shape))
                show(all_runs, 1, _paint(kind, tones, colors, scale), "truth")
            show(all_runs, 1 + beside, _paint(kind, expert, colors, scale), "expert")
            if first.mean is not None:
                show(all_runs, len(widths) - 1, _paint(kind, _output(kind, first.mean), colors, scale), "mean feature")
            for row, (label, decoded) in enumerate(runs.items(), top):
                for column, layer in enumerate(layers, 3 + beside):
                    pixels = _paint(kind, _output(kind, decoded[target].layers[layer]), colors, scale)
                    show(row, column, pixels, layer_name(layer), plain_text(label) if layer == layers[0] else "")
        if segs := [name for name in known if next(iter(runs.values()))[name].kind == "seg"]:
            outputs = [each for decoded in runs.values() for name in segs for each in decoded[name].all()]
            maps = [
                *(known[name] for name in segs if known[name].ndim == 2),
                *(_output("seg", each) for each in outputs),
            ]
            _add_legend(figure, maps, classes)
        with atomic_write(Path(out)) as temporary:
            figure.savefig(temporary, dpi=150)


def _add_legend(figure: Figure, maps: Sequence[NDArray[Any]], classes: Sequence[tuple[str, Sequence[int]]]) -> None:
    """Name below the figure the classes that most pixels of the maps have."""
    area = np.bincount(np.concatenate([labels.ravel() for labels in maps]), minlength=len(classes))[: len(classes)]
    shown = sorted(np.argsort(-area, kind="stable")[: min(MOST_CLASSES, int((area > 0).sum()))])
    handles = [
        Patch(color=tuple(np.array(classes[label][1]) / 255), label=plain_text(classes[label][0])) for label in shown
    ]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), handlelength=0.8)


def _colors(count: int) -> list[tuple[int, int, int]]:
    """Give colours (0…255) that neighbours among classes do not share: hues by the golden angle, in three shades."""
    hues = (np.arange(count) * 0.618034) % 1
    shades = np.array([(0.75, 0.85), (0.45, 0.95), (0.9, 0.6)])[np.arange(count) % 3].reshape(-1, 2)
    return [tuple(color) for color in (hsv_to_rgb(np.column_stack([hues, shades])) * 255).round().astype(int).tolist()]


def _output(kind: str, output: "Tensor") -> NDArray[Any]:
    """Bring what `Target.decode` gives for an image to the form of the truth."""
    values = output.numpy()
    return values.argmax(0) if kind == "seg" else values.transpose(1, 2, 0) if kind == "gen" else values


def _resized(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Bring a map (h, w) to another size (H, W)."""
    height, width = shape
    image = PIL.Image.fromarray(values.astype(np.float32), mode="F")
    return np.asarray(image.resize((width, height), PIL.Image.Resampling.BILINEAR))


def _paint(kind: str, values: NDArray[Any], colors: Pixels, scale: tuple[float, float] | None = None) -> Pixels:
    """Make colours of a depth map, of classes, or of an image.

    A depth map is stretched from the farthest to the closest value of `scale`, by default its own; NaN is grey.
    """
    if kind == "seg":
        return np.vstack([colors, np.ones(3)])[np.minimum(values, len(colors))]
    if kind == "depth":
        low, high = scale or (values.min(), values.max())
        inferno = matplotlib.colormaps["inferno"].with_extremes(bad="grey")
        return inferno(np.ma.masked_invalid((values - low) / (high - low if high > low else 1)))[..., :3]
    return values
