"""What distilling experts into an MLLM leaves in its layers.

python -m benchmarks.distilling --out runs/distilling
python -m benchmarks.distilling --only references,trained

The study has parts (`PARTS`), each of them a question:

    seeds        do all trainings of `distilled` lie above those of `tuned`, from which layer on?
    references   where are both beside `early`, `untrained`, a model of random weights, and the mean feature?
    transfer     does an expert rise that was not distilled, and does the rise of one need the others?
    trained      does the rise stand where it does if probes are trained rather than exact?

Seed 0 of `tuned` and `distilled` are the models of the package; all others are grown here, behind the same vision
tower, in five minutes of one core each. Probes are fitted to all layers, and scored on held-out scenes by similarity
and, in the first two parts, by the tasks of depth and seg. Writes to OUT/PART scores.csv, comparisons.csv (by how much
a model lies above another on the same scenes) and scores.png, and prints the comparisons where the losses stood and at
the last layer. What parts share is done once. It can be stopped; another call resumes it.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tools.world.distill import LOSSES
from tqdm import tqdm

from benchmarks.distilling.figure import draw
from benchmarks.distilling.runs import ALL_RANDOM, LEFT_OUT, Studied, Study
from benchmarks.distilling.tables import METRICS, SIMILARITY, compare_all, over_seeds, read_all
from innervision import load_targets
from innervision.world.dataset import write_scenes

LAST = 8
"""Layer."""


class Part(NamedTuple):
    """A question of the study."""

    studied: list[Studied]
    """What is scored, in the order of the figure's legend."""
    pairs: list[tuple[Studied, Studied | None]]
    """What is compared: the first less the second, which is the mean feature where it is None."""
    tasks: bool = True
    """Whether to score by tasks, too, which take three times as long as all else."""


def main(arguments: list[str] | None = None) -> None:
    """Grow, fit, score, compare and draw."""
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distilling", description=description)
    parser.add_argument("--out", type=Path, default=Path("runs/distilling"))
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of the MLLMs, and models of random weights")
    parser.add_argument("--train", type=int, default=500, help="scenes for the probes")
    parser.add_argument("--val", type=int, default=300, help="held-out scenes")
    parser.add_argument("--layers", default="all", help="of exact probes")
    parser.add_argument(
        "--trained-layers", default="vision,0,2,4,6,8", help="of trained probes, which take longer (%(default)s)"
    )
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")

    write_scenes(options.out / "scenes", options.train, options.val)
    targets = load_targets([f"{name}=world/{name}" for name in LOSSES], device="cpu", head=True)
    study = Study(options.out, targets, options.layers, options.trained_layers)
    for name in names:
        part = PARTS[name](options.seeds)
        for studied in tqdm(part.studied, desc=name, unit="model"):
            study.fit_and_score(studied, tasks=part.tasks)
        folder = options.out / name
        folder.mkdir(exist_ok=True)
        metrics = METRICS if part.tasks else {SIMILARITY}
        scores = read_all(study, part.studied, metrics)
        scores.to_csv(folder / "scores.csv", index=False)
        compared = compare_all(study, part.pairs, metrics)
        compared.to_csv(folder / "comparisons.csv", index=False)
        draw(scores).savefig(folder / "scores.png", dpi=120)
        shown = over_seeds(compared)
        shown = shown[(shown["loss"] != "") | (shown["layer"] == LAST)]
        print(f"\n{name}\n{shown.to_string(index=False, float_format=lambda value: f'{value:+.3f}')}")


def _seeds(count: int) -> Part:
    pairs = [(Studied("distilled", seed), Studied("tuned", seed)) for seed in range(count)]
    return Part([studied for pair in pairs for studied in pair], [*pairs])


def _references(count: int) -> Part:
    grown = [Studied("distilled"), Studied("tuned")]
    early, untrained = Studied("early"), Studied("untrained")
    random = [Studied(ALL_RANDOM, seed) for seed in range(count)]
    pairs = [(grown[0], grown[1])]
    pairs += [(one, other) for one in grown for other in (early, untrained, *random)]
    pairs += [(early, untrained), *((untrained, other) for other in random)]
    return Part([*grown, early, untrained, *random], [*pairs, *((other, None) for other in random)])


def _transfer(count: int) -> Part:
    studied, pairs = [], []
    for seed in range(1, max(2, count)):  # the package's models were not grown in one go with those that are grown here
        distilled, tuned = Studied("distilled", seed), Studied("tuned", seed)
        without = [Studied(name, seed) for name in LEFT_OUT]
        studied += [distilled, tuned, *without]
        pairs += [(distilled, tuned), *((one, tuned) for one in without), *((distilled, one) for one in without)]
    return Part(studied, [*pairs], tasks=False)


def _trained(count: int) -> Part:
    del count  # one training of the MLLMs
    exact = [Studied("distilled"), Studied("tuned")]
    trained = [studied._replace(probe="trained") for studied in exact]
    pairs = [(exact[0], exact[1]), (trained[0], trained[1]), *zip(trained, exact, strict=True)]
    return Part([*exact, *trained], [*pairs], tasks=False)


PARTS: dict[str, Callable[[int], Part]] = {
    "seeds": _seeds,
    "references": _references,
    "transfer": _transfer,
    "trained": _trained,
}
"""Name -> the part, for a number of seeds."""


if __name__ == "__main__":
    main()
