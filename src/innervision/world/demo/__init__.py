"""The demo: train, score, decode and draw on images and models that come with the package.

innervision demo --out runs/demo
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from innervision.files import atomic_write
from innervision.world.dataset import write_scenes

RUNS = ("untrained", "tuned", "distilled")
"""The MLLMs of the package whose layers are read, which are also the names of their runs."""
DISTILLED = {"depth": 4, "seg": 2, "gen": 6}
"""Target -> the layer of `distilled` that learnt to predict it."""
EVALUATIONS = {"seg": "miou", "depth": "accuracy", "gen": "frechet:world/gen", "similarity": "centred_cosine"}
"""Evaluation -> the metric that is printed of it; those that take long come first."""
SIZE = 112


def run_demo(out: Path) -> None:
    """Show the tool at work, from images to curves and a picture, in a few minutes on two CPU cores.

    An interrupted call resumes where it stopped; what is finished is left as it is.

    Args:
        out: folder of the demo's scenes, runs and figures; made if it does not exist.

    Raises:
        InnerVisionError: the folder holds something else, or the disk is full.
    """
    demonstrate(out, train=1500, val=200, workers=min(len(RUNS), os.cpu_count() or 1))


def demonstrate(out: Path, train: int, val: int, *, workers: int = 1, progress: bool = True) -> list[Path]:
    """Run the demo on `train` and `val` scenes with `workers` processes, and give the paths of its figures.

    See `run_demo`. With several processes this one only hands out the work, so that nothing waits until it has loaded
    PyTorch as well.
    """
    taught = ", ".join(f"{target} at layer {layer}" for target, layer in DISTILLED.items())
    print(
        f"""\
Tiny MLLMs of eight layers: world/tuned has learnt to describe synthetic scenes; world/distilled as well, and besides to
predict what vision experts see ({taught}); world/untrained is a random
language model behind the same vision tower. Which layers know what? Exact probes tell, fitted to {train:,} scenes.
""",
        flush=True,
    )
    scenes, runs, notes = out / "scenes", [out / "runs" / name for name in RUNS], out / "notes.txt"
    write_scenes(scenes, train, val, size=SIZE, workers=workers, progress=progress)
    with (
        _processes(workers) as pool,
        tqdm(total=len(RUNS) * (1 + len(EVALUATIONS)) + 3, unit="job", disable=not progress) as bar,
    ):
        for done in _work_through(pool, out, notes):
            bar.set_postfix_str(done)
            bar.update()
        found = [
            _submit(pool, _draw_scene, runs, scenes, out / "layers.png"),
            _submit(pool, _draw_curves, runs, out / "curves"),
            _submit(pool, _summarize, runs),
        ]
        picture, curves, (rows, tables) = (each.result() for each in found)
        bar.update(len(found))
    with atomic_write(out / "tables.txt") as path:
        path.write_text(tables, encoding="utf-8")
    print(
        f"""\
{rows}

{curves[0]}  the curves, as {curves[1].name} too. What counts is how far a line lies above the floors (dotted: a
    wrong image; dashed: the mean feature). The vertical lines stand where `distilled` was taught: there it peaks.
{picture}  the scene of median score as each layer shows it
{out / "tables.txt"}  every layer's scores with intervals; {notes.name} has what the runs told
{scenes}  the images; their README.md says what else is known about them
{out / "runs"}  a folder for each run: run.yaml holds all settings, scores/ a row per image and layer
next: innervision train --mllm ID --images FOLDER --out RUN, with a real model and real images"""
    )
    return [*curves, picture]


# --- who does the work: these import what takes seconds to load ---------------------------------------------


@contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor | None]:
    """Give processes of one thread each; None where this one does the work itself."""
    if count == 1:
        yield None
        return
    # Spawned, not forked: a fork may inherit the locks of threads.
    with ProcessPoolExecutor(count, get_context("spawn"), initializer=_use_one_thread) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def _use_one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _submit(pool: ProcessPoolExecutor | None, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Have it done by one of the processes, or do it now."""
    if pool is not None:
        return pool.submit(function, *arguments)
    done: Future[Any] = Future()
    done.set_result(function(*arguments))
    return done


def _work_through(pool: ProcessPoolExecutor | None, out: Path, notes: Path) -> Iterator[str]:
    """Fit and evaluate all runs, and yield what is done."""
    left = {_submit(pool, _work, out, notes, name, "fit") for name in RUNS}
    while left:
        finished, left = wait(left, return_when=FIRST_COMPLETED)
        for done in (future.result() for future in finished):
            name, job = done.split()
            if job == "fit":
                left |= {_submit(pool, _work, out, notes, name, evaluation) for evaluation in EVALUATIONS}
            yield done


def _work(out: Path, notes: Path, name: str, job: str) -> str:
    from innervision.world.demo.jobs import work

    work(out, notes, name, job)
    return f"{name} {job}"


def _summarize(runs: Sequence[Path]) -> tuple[str, str]:
    from innervision.world.demo.findings import summarize

    return summarize(runs)


def _draw_curves(runs: Sequence[Path], out: Path) -> list[Path]:
    from innervision.world.demo.findings import draw_curves

    return draw_curves(runs, out)


def _draw_scene(runs: Sequence[Path], scenes: Path, out: Path) -> Path:
    from innervision.world.demo.findings import draw_scene

    return draw_scene(runs, scenes, out)
