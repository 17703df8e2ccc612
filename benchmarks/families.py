"""Runs `innervision check` on tiny random checkpoints of image-text families, and writes docs/families.md.

python -m benchmarks.families
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from innervision.errors import InnerVisionError, first_line
from innervision.mllm import MLLM
from innervision.mllm.check import Finding, hidden_states_agree, self_test

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from tiny_mllms import FAMILIES, save_tiny  # the tests are no package

PAGE = Path(__file__).parents[1] / "docs/families.md"


def main() -> None:
    """Check every family, print the page and write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="families that have this in their name; nothing is written")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = [row(family) for family in tqdm([name for name in FAMILIES if options.only in name], disable=None)]
    page = "\n".join([*heading(len(rows)), *rows]) + "\n"
    print(page, end="")
    if not options.only:
        PAGE.write_text(page)


def heading(count: int) -> list[str]:
    """Give the lines above the rows of the table."""
    return [
        "# Families that were tested",
        "",
        f"`python -m benchmarks.families` wrote this page: {count} tiny checkpoints with random weights, ",
        "made from each family's own configuration, model and processor classes, in float32 on a CPU, with",
        f"Transformers {transformers.__version__} and PyTorch {torch.__version__.partition('+')[0]}.",
        "[Which models work](models.md#is-a-model-read-rightly) says what is tested.",
        "",
        "| family | class | layer −1 | layers 0…L | outcome |",
        "|---|---|---|---|---|",
    ]


def row(family: str) -> str:
    """Check one family."""
    with tempfile.TemporaryDirectory() as folder:
        mllm = MLLM.load(str(save_tiny(family, Path(folder))), device="cpu")
        try:
            vision = f"{mllm.vision_width} wide"
        except InnerVisionError as error:
            vision = "none: " + first_line(error).removeprefix(f"{mllm.name}: ").partition(", so layer -1")[0]
        same = hidden_states_agree(mllm)
        findings = self_test(mllm)
    agree = "equal to `hidden_states`" if same.verdict == "ok" else same.detail
    return f"| {family} | {type(mllm.model).__name__} | {vision} | {agree} | {outcome([*findings, same])} |"


def outcome(findings: list[Finding]) -> str:
    """Say in a cell what did not go well."""
    wrong = [f"{finding.verdict}: {finding.detail}" for finding in findings if finding.verdict != "ok"]
    return "; ".join(wrong) or "all tests passed"


if __name__ == "__main__":
    main()
