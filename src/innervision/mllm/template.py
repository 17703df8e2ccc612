"""Chat templates are programs from strangers: each conversation is written once, under limits, by a process apart."""

from typing import Any

from innervision.errors import InnerVisionError, first_line
from innervision.mllm.limits import run_limited

SECONDS, MEMORY, LONGEST = 10.0, 1 << 30, 1 << 16
"""What a template may take for a conversation: time, bytes of memory, characters of text beside what was given."""


def write_conversation(processor: Any, name: str, prompt: str, reply: str | None = None) -> str:
    """Let a processor's chat template write a conversation of one image, a prompt and perhaps the model's reply.

    The template sees that there is an image, not the image. It runs in the sandbox of Transformers, which keeps it from
    files and from the network but not from running forever: so it runs under limits, see `run_limited`.

    Args:
        processor: has a chat template.
        name: of the model, for errors.
        prompt: stands beside the image, as the user's turn.
        reply: the model's turn; without one, the text ends where it would begin.

    Raises:
        InnerVisionError: it takes too long, too much memory or writes too much; it fails, or takes no images.
    """
    found = run_limited(lambda: _try(processor, prompt, reply), SECONDS, MEMORY)
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
        raise
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
