"""Chat templates: what they write is what the library would make of them, and they are held to limits at any prompt."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from innervision.errors import InnerVisionError
from innervision.mllm import MLLM
from innervision.mllm.inputs import InputBuilder
from innervision.mllm.template import write_conversation
from tiny_mllms import FAMILIES, save_tiny

Load = Callable[[str], MLLM]
PROMPT = "What is in the middle?"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
SHOWN = "{{ messages[0].content[1].text }}"


@pytest.mark.parametrize("reply", [None, "A cat."])
@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_are_those_of_the_processors_own_chat_template(
    load_family: Load, unequal_images: list[Image.Image], family: str, reply: str | None
) -> None:
    builder = load_family(family).builder
    if not builder.processor.chat_template:
        return
    answer = [{"role": "assistant", "content": [{"type": "text", "text": reply}]}] if reply else []
    for image in unequal_images:
        content = [{"type": "image", "image": image}, {"type": "text", "text": PROMPT}]
        expected = builder.processor.apply_chat_template(
            [[{"role": "user", "content": content}, *answer]],
            add_generation_prompt=not reply,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        found = builder([image], PROMPT, reply).tensors
        for key, value in expected.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(found[key], value, rtol=0, atol=0)


def processor(template: str) -> Any:
    """A processor that writes by a template, and reads no images."""
    from transformers.utils.chat_template_utils import render_jinja_template

    def apply_chat_template(turns: list, *, add_generation_prompt: bool, tokenize: bool) -> str:
        assert not tokenize
        texts, _ = render_jinja_template([turns], chat_template=template, add_generation_prompt=add_generation_prompt)
        return texts[0]

    return SimpleNamespace(chat_template=template, apply_chat_template=apply_chat_template)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (ENDLESS, "has not ended after 0 s"),
        ("{{ 'a' * 10000000000 }}", "MiB of memory"),
        ("{{ 'a' * 100000 }}", "it writes 100,0.. characters"),
        ("{% for ", "TemplateSyntaxError"),
    ],
)
@pytest.mark.parametrize(
    "when", ["messages[0].content[1].text != 'Describe the image.'", "messages|length > 1", "not add_generation_prompt"]
)
def test_a_template_that_is_harmful_to_one_conversation_alone_is_refused_there(
    when: str, template: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("innervision.mllm.template.SECONDS", 0.4)
    harmful = f"{{% if {when} %}}{template}{{% endif %}}{SHOWN}"
    builder = InputBuilder(processor(harmful), SimpleNamespace(), name="model x")
    with pytest.raises(InnerVisionError, match=f"the chat template of model x cannot be used.*{said}"):
        builder([Image.new("RGB", (8, 8))], "Is it a cat?", "It is.")


def test_a_template_writes_each_conversation_once(load_family: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_family("llava").builder
    written: list[tuple] = []

    def spy(processor: Any, name: str, *conversation: Any) -> str:
        written.append(conversation)
        return write_conversation(processor, name, *conversation)

    monkeypatch.setattr("innervision.mllm.inputs.write_conversation", spy)
    builder = InputBuilder(loaded.processor, loaded.config, loaded.arguments)
    for prompt in ("a", "b", "a"):
        builder([Image.new("RGB", (20, 20))] * 2, prompt)
    assert written == [("a", None), ("b", None)]


def test_a_template_does_not_see_the_image(tmp_path: Path) -> None:
    folder = save_tiny("llava", tmp_path / "llava")
    spying = "{% if 'image' in messages[0].content[0] %}{{ raise_exception('it has the image') }}{% endif %}<image>"
    (folder / "chat_template.jinja").write_text(spying + SHOWN)
    assert MLLM.load(str(folder), device="cpu").prepare([Image.new("RGB", (20, 20))], PROMPT).image_mask.any()


def test_a_long_conversation_is_written_whole() -> None:
    prompt = "é" * 200_000  # more than a pipe holds, and than a template may add
    assert write_conversation(processor(SHOWN), "x", prompt) == prompt
