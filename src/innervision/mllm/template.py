"""Chat templates are programs from strangers: tried once, under limits, before one is used."""

import json
import os
import select
import signal
from typing import Any

from innervision.errors import InnerVisionError, first_line

SHORT_PROMPT = "Describe the image."
"""Stands beside an image in the conversation that a template is tried on."""

SECONDS, MEMORY, LONGEST = 10.0, 1 << 30, 1 << 16
"""What a template may take for one image and a short prompt: time, bytes of memory, characters of text."""


def check_template(processor: Any, name: str) -> None:
    """Let a processor's chat template write a short conversation, in a process that is ended at the limits.

    The template runs in the sandbox of Transformers, which keeps it from files and from the network but not from
    running forever. Without a template, or where processes cannot be forked, nothing is done.

    Raises:
        InnerVisionError: it takes too long, too much memory or writes too much; it fails, or takes no images.
    """
    if not getattr(processor, "chat_template", None) or not hasattr(os, "fork"):
        return
    found = _in_child(lambda: _try(processor))
    if "error" not in found:
        return
    if found.get("takes_text"):
        raise InnerVisionError(
            f"the chat template of {name} takes text alone, not an image beside it: use the template of an image-text "
            f"model ({found['error']})"
        )
    raise InnerVisionError(f"the chat template of {name} cannot be used: {found['error']}")


def _try(processor: Any) -> dict[str, Any]:
    """Write the conversation; where that fails, the same without an image and with text as a string."""
    try:
        text = _write(processor, [{"type": "image"}, {"type": "text", "text": SHORT_PROMPT}])
    except MemoryError:
        return {"error": f"it takes more than {MEMORY >> 20} MiB of memory for a short prompt"}
    except Exception as error:  # a template is a program and may raise anything
        failed: dict[str, Any] = {"error": f"{type(error).__name__}: {first_line(error)}"}
        try:
            _write(processor, SHORT_PROMPT)
        except Exception:
            return failed
        return failed | {"takes_text": True}
    if len(text) > LONGEST:
        return {"error": f"it writes {len(text):,} characters for a short prompt"}
    if "'type': 'image'" in text:  # a list, written as Python does
        return {"error": "it writes the list of image and text as it is", "takes_text": True}
    return {}


def _write(processor: Any, content: Any) -> str:
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )


def _in_child(work: Any) -> dict[str, Any]:
    """Run `work` in a fork of this process under the limits, and give what it returns, or an `error`."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _limit_memory()
            os.write(writing, json.dumps(work()).encode()[: select.PIPE_BUF])
        finally:
            os._exit(0)
    os.close(writing)
    try:
        ready, _, _ = select.select([reading], [], [], SECONDS)
        answer = os.read(reading, select.PIPE_BUF) if ready else None
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if answer is None:
        return {"error": f"it has not ended after {SECONDS:.0f} s for a short prompt"}
    return json.loads(answer) if answer else {"error": "the process that tried it was ended, as when memory runs out"}


def _limit_memory() -> None:
    """Let this process take so much more memory than it has."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    except (ImportError, OSError, ValueError):  # not on Linux: the limit of time remains
        return
