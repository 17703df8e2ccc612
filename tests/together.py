"""Functions run by several processes at once, as torchrun would start them."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Collection
from multiprocessing.connection import Connection
from typing import Any

IMPORTS = [
    "pandas",
    "timm",
    "transformers.models.llava.modeling_llava",
    "transformers.models.llava.processing_llava",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
    "transformers.models.depth_anything.modeling_depth_anything",
    "transformers.models.dinov2.modeling_dinov2",
    "transformers.models.dpt.image_processing_dpt",
    "transformers.models.clip.modeling_clip",
    "transformers.models.oneformer.modeling_oneformer",
    "innervision.engine.fit",
    "innervision.engine.evaluate",
    "innervision.original.held_experts",
    "innervision.tasks.depth",
]
"""What the processes would import one by one: they start from a process that has it."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run_together(
    count: int,
    work: Callable,
    *arguments: Any,
    port: int | None = None,
    of: int | None = None,
    left_standing: Collection[int] = (),
) -> list[Any]:
    """Call `work(index, *arguments)` in each of `count` processes.

    Args:
        count: of the processes.
        work: a function of a module.
        arguments: of the function.
        port: at which they meet.
        of: how many there should be; by default as many as there are.
        left_standing: those that do not end.

    Returns:
        For each process what it gives, the text of the error that it raises, or None where it was killed.
    """
    starter = multiprocessing.get_context("forkserver")
    starter.set_forkserver_preload(IMPORTS)
    port = port or free_port()
    pipes = [starter.Pipe(duplex=False) for _ in range(count)]
    processes = [
        starter.Process(target=_live, args=(index, of or count, port, pipes[index][1], work, arguments))
        for index in range(count)
    ]
    try:
        for process in processes:
            process.start()
        for _, end in pipes:
            end.close()
        for index, process in enumerate(processes):
            if index not in left_standing:
                process.join(60)
                assert process.exitcode is not None, f"process {index} hangs"
        return [None if index in left_standing else _read(pipe) for index, (pipe, _) in enumerate(pipes)]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _read(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        return None


def _live(index: int, count: int, port: int, end: Connection, work: Callable, arguments: tuple) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "RANK": str(index),
        "LOCAL_RANK": str(index),
    }
    try:
        found = work(index, *arguments)
    except Exception as error:
        traceback.print_exc()
        found = f"{type(error).__name__}: {error}"
    end.send(found)
