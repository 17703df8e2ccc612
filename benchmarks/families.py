"""Tests tiny random checkpoints of the image-text families of Transformers, and writes docs/families.md.

python -m benchmarks.families
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from benchmarks.tiny_families import families, save_family
from innervision import EvaluateSettings, TrainSettings, evaluate_similarity, fit
from innervision.config import VISION
from innervision.errors import InnerVisionError, first_line
from innervision.mllm import MLLM
from innervision.mllm.check import Finding, hidden_states_agree, noise, self_test
from innervision.mllm.model import SAMPLE_PROMPT
from innervision.mllm.places import PlaceFinder

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from tiny_experts import save_tiny_backbone  # the tests are no package
from tiny_mllms import FAMILIES, save_tiny

PAGE = Path(__file__).parents[1] / "docs/families.md"
SIZES = [(64, 48), (90, 120), (120, 60), (75, 75), (100, 140), (160, 60)]
"""Width and height of the images that probes are trained on."""
PLACED = (320, 240)
"""Width and height of the image in which places are sought."""
REFUSED_BY_THE_FAMILY = re.compile("fails on these inputs|refuses the input|the checkpoint lacks")
"""Where the family's own classes do not take the tiny checkpoint, it says nothing about the family."""


@dataclass
class Row:
    """What was found of one family."""

    family: str
    model: str = "–"
    vision: str = "–"
    states: str = "–"
    places: str = "–"
    scored: str = "–"
    outcome: str = ""

    def __str__(self) -> str:
        """Write the row of the table."""
        cells = (self.family, self.model, self.vision, self.states, self.places, self.scored, self.outcome)
        return f"| {' | '.join(cell.replace('|', '¦') for cell in cells)} |"


def main() -> None:
    """Test every family, print the page and write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="families that have this in their name; nothing is written")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    builders: dict[str, Callable[[Path], Path]] = {name: partial(save_family, name) for name in families()}
    builders |= {name: partial(save_tiny, name) for name in FAMILIES}
    names = [name for name in sorted(builders) if options.only in name]
    rows = []
    for name in tqdm(names, disable=None):
        rows.append(test_family(name, builders[name]))
        print(rows[-1], flush=True)
    if not options.only:
        PAGE.write_text("\n".join([*heading(rows), *map(str, rows)]) + "\n", encoding="utf-8")


def heading(rows: list[Row]) -> list[str]:
    """Give the lines above the rows of the table."""
    kinds = [row.outcome.partition(":")[0] for row in rows]
    built = len(rows) - kinds.count("not built")
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(sorted(kinds)))
    return [
        "# Families that were tested",
        "",
        f"`python -m benchmarks.families` wrote this page: tiny checkpoints of {built} families ({counts}) with",
        "random weights, made from each family's own configuration, model and processor classes, in float32 on a CPU,",
        f"with Transformers {transformers.__version__} and PyTorch {torch.__version__.partition('+')[0]}.",
        "[Which models work](models.md#is-a-model-read-rightly) says what is tested.",
        "",
        "- **right**: all tests passed. **warned**: it can be probed, and `innervision check` says what to mind.",
        "  **refused**: it cannot, and this is what the user is told. **fails**: an error that nobody understands.",
        "  **not built**: no checkpoint that the family's own classes take was made in this way.",
        f"- **places**: the share of image tokens whose place was found in an image of {PLACED[0]} × {PLACED[1]}.",
        "  Row ends and tokens that look everywhere have none; with random weights a few others show too little.",
        "- **scored**: whether probes of all layers (ridge, or pooled where no token has a place) were trained on",
        f"  {len(SIZES)} images of unequal sizes and scored by similarity.",
        "",
        "| family | class | layer −1 | layers 0…L | places | scored | outcome |",
        "|---|---|---|---|---|---|---|",
    ]


def test_family(family: str, build: Callable[[Path], Path]) -> Row:
    """Build a family and test it."""
    row = Row(family)
    with tempfile.TemporaryDirectory() as folder:
        try:
            checkpoint = build(Path(folder) / family)
        except Exception as error:  # whatever the family's classes raise
            row.outcome = f"not built: {type(error).__name__}: {first_line(error)}"
            return row
        try:
            examine(row, MLLM.load(str(checkpoint), device="cpu"), Path(folder))
        except InnerVisionError as error:
            kind = "not built" if REFUSED_BY_THE_FAMILY.search(str(error)) else "refused"
            row.outcome = f"{kind}: {first_line(error)}".replace(folder + "/", "")
        except Exception as error:
            row.outcome = f"fails: {type(error).__name__}: {first_line(error)}".replace(folder + "/", "")
    return row


def examine(row: Row, mllm: MLLM, folder: Path) -> None:
    """Run every test on a loaded model.

    Raises:
        InnerVisionError: it is refused.
    """
    row.model = type(mllm.model).__name__
    try:
        row.vision = f"{mllm.vision_width} wide"
    except InnerVisionError as error:
        row.vision = "none: " + first_line(error).removeprefix(f"{mllm.name}: ").partition(", so ")[0]
    findings = self_test(mllm)
    if wrong := [finding for finding in findings if finding.verdict == "error"]:
        raise InnerVisionError(wrong[0].detail)
    same = hidden_states_agree(mllm)
    row.states = "equal to `hidden_states`" if same.verdict == "ok" else same.detail
    row.places = placed(mllm)
    row.scored = train_and_score(mllm, folder)
    row.outcome = outcome([*findings, same])


def placed(mllm: MLLM) -> str:
    """Give the share of image tokens that have a place in layer 0, and in layer -1 where there is one."""
    finder = PlaceFinder(mllm, lambda images: mllm.prepare(images, SAMPLE_PROMPT))
    inputs = mllm.prepare([noise(*PLACED)], SAMPLE_PROMPT)
    found = finder.find(inputs, [VISION, 0] if mllm.has_vision_layer() else [0])
    known = {stage: places.isfinite().all(dim=2) for stage, places in found.items()}
    shares = [f"{known[VISION].float().mean():.0%} of layer −1"] if VISION in known else []
    tokens = inputs.image_mask.to(known[0].device)
    if tokens.any():
        shares.insert(0, f"{known[0][tokens].float().mean():.0%}")
    return ", ".join(shares) or "no image tokens"


def train_and_score(mllm: MLLM, folder: Path) -> str:
    """Train probes of all layers and score them by similarity.

    Raises:
        InnerVisionError: with what a user would be told.
    """
    images = folder / "images"
    images.mkdir()
    for number, size in enumerate(SIZES):
        noise(*size, seed=number).save(images / f"{number}.png")
    expert = save_tiny_backbone(folder / "expert")
    settings = TrainSettings(
        mllm=str(folder / mllm.name),
        targets=f"backbone={expert}",
        images=str(images),
        out=str(folder / "run"),
        micro_batch_size=3,
        workers=0,
        device="cpu",
    )
    banks = fit(settings, mllm=mllm, progress=False)
    evaluation = EvaluateSettings(images=str(images), workers=0, device="cpu")
    evaluate_similarity(settings.out, evaluation, mllm=mllm, progress=False)
    return f"yes, {len(banks['backbone'].layers)} layers"


def outcome(findings: list[Finding]) -> str:
    """Say in a cell what did not go well."""
    wrong = [finding.detail for finding in findings if finding.verdict != "ok"]
    return "warned: " + "; ".join(wrong) if wrong else "right"


if __name__ == "__main__":
    main()
