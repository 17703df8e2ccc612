"""Chat templates are programs from strangers: each conversation is written once, under limits, by a process apart."""

import json
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from innervision.errors import InnerVisionError, first_line

SECONDS, MEMORY, LONGEST = 10.0, 1 << 30, 1 << 16
"""What a template may take for a conversation: time, bytes of memory, characters of text beside what was given."""


def write_conversation(processor: Any, name: str, prompt: str, reply: str | None = None) -> str:
    """Let a processor's chat template write a conversation of one image, a prompt and perhaps the model's reply.

    The template sees that there is an image, not the image. It runs in the sandbox of Transformers, which keeps it from
    files and from the network but not from running forever: so it runs in a process that is ended at the limits (in
    this one, without them, where processes cannot be forked).

    Args:
        processor: has a chat template.
        name: of the model, for errors.
        prompt: stands beside the image, as the user's turn.
        reply: the model's turn; without one, the text ends where it would begin.

    Raises:
        InnerVisionError: it takes too long, too much memory or writes too much; it fails, or takes no images.
    """
    found = (_in_child if hasattr(os, "fork") else _call)(lambda: _try(processor, prompt, reply))
    if "error" not in found:
        return found["text"]
    if found.get("takes_text"):
        raise InnerVisionError(
            f"the chat template of {name} takes text alone, not an image beside it: use the template of an image-text "
            f"model ({found['error']})"
        )
    raise InnerVisionError(f"the chat template of {name} cannot be used: {found['error']}")


def _try(processor: Any, prompt: str, reply: str | None) -> dict[str, Any]:
    """Write the conversation; where that fails, the same without an image and with text as a string."""
    answer = [{"role": "assistant", "content": [{"type": "text", "text": reply}]}] if reply else []

    def write(content: Any) -> str:
        return processor.apply_chat_template(
            [{"role": "user", "content": content}, *answer], add_generation_prompt=not reply, tokenize=False
        )

    try:
        text = write([{"type": "image"}, {"type": "text", "text": prompt}])
    except MemoryError:
        return {"error": f"it takes more than {MEMORY >> 20} MiB of memory"}
    except Exception as error:  # a template is a program and may raise anything
        failed: dict[str, Any] = {"error": f"{type(error).__name__}: {first_line(error)}"}
        try:
            write(prompt)
        except Exception:
            return failed
        return failed | {"takes_text": True}
    given = len(prompt) + len(reply or "")
    if len(text) > LONGEST + given:
        return {"error": f"it writes {len(text):,} characters for a prompt of {given:,}"}
    if "'type': 'image'" in text:  # a list, written as Python does
        return {"error": "it writes the list of image and text as it is", "takes_text": True}
    return {"text": text}


def _call(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    return work()


def _in_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run `work` in a fork of this process under the limits, and give what it returns, or an `error`."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _limit_memory()
            with os.fdopen(writing, "w") as file:
                file.write(json.dumps(work()) + "\n")
        finally:
            os._exit(0)
    os.close(writing)
    try:
        answer = _read_line(reading, time.monotonic() + SECONDS)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if answer is None:
        return {"error": f"it has not ended after {SECONDS:.0f} s"}
    return json.loads(answer) if answer else {"error": "the process that ran it was ended, as when memory runs out"}


def _read_line(file: int, deadline: float) -> bytes | None:
    """Read until a line break; nothing where the other end closes before, None where it is not there in time."""
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([file], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        if not (part := os.read(file, select.PIPE_BUF)):
            return b""
        line += part
    return line


def _limit_memory() -> None:
    """Let this process take so much more memory than it has."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    except (ImportError, OSError, ValueError):  # not on Linux: the limit of time remains
        return
