"""Trains and measures the models of the embedded world, in a clone of the repository.

python -m tools.world build --out runs/world
python -m tools.world card --out runs/world
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.world.build import PARTS, build
from tools.world.card import write_card

from innervision.checkpoints.identity import MODELS
from innervision.errors import InnerVisionError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 done, 1 failed. Wrong usage exits with status 2.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.world", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    builder = commands.add_parser("build", help="train the models from nothing")
    builder.add_argument("--out", type=Path, default=Path("runs/world"), help="folder of the models")
    builder.add_argument("--only", type=lambda text: text.split(","), help=f"of {','.join(PARTS)}; by default all")
    builder.add_argument("--seed", type=int, default=0, help="of the weights and of the order of the scenes")
    builder.add_argument("--effort", type=float, default=1.0, help="share of the full training to do, for a try")
    measurer = commands.add_parser("card", help="measure the models on held-out scenes, and write their card")
    measurer.add_argument("--out", type=Path, default=MODELS, help="folder of the models; by default the package's own")
    options = parser.parse_args(arguments)
    try:
        if options.command == "build":
            build(options.out, options.only, seed=options.seed, effort=options.effort)
            print(f"next: python -m tools.world card --out {options.out}")
        else:
            path = write_card(options.out)
            print(path.read_text(encoding="utf-8"), path, sep="\n")
    except InnerVisionError as error:
        print(f"tools.world: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
