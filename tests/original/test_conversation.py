"""Prompt, tokens and padding of the original code: its own strings and ids, and Transformers' Llama tokenizer."""

import json
from pathlib import Path

import pytest
import transformers as hf
from PIL import Image

from innervision.original.conversation import (
    TEMPLATES,
    OriginalProcessor,
    Tokenizer,
    default_template,
    pad_to_square,
)

PROMPT = "Describe the image in two lines."


def test_prompts_are_those_of_the_original(shared: Path) -> None:
    prompts = json.loads((shared / "golden/misc/prompts.json").read_text())
    assert set(prompts["conv_template_names"]) == set(TEMPLATES)
    checked = 0
    for name, expected in prompts["prompts"].items():
        if name == "train_preprocess_multimodal":
            continue
        kind, template, *prompt = name.split("|")
        processor = OriginalProcessor(None, None, template, 1, 0, True)
        reply = "n" if kind == "train" else None
        assert processor.text(prompt[0] if prompt else PROMPT, reply) == expected
        checked += 1
    assert checked == 9


def test_training_ids_with_the_reply_are_those_of_the_original(shared: Path, checkpoints: Path) -> None:
    expected = json.loads((shared / "golden/misc/prompts.json").read_text())["train_ids_with_tiny_tokenizer"]
    tokenizer = Tokenizer.load(str(checkpoints / "base-tiny-llava-llama3"), None, None)
    for template in ("llava_llama_3", "llava_phi_3"):
        processor = OriginalProcessor(tokenizer, None, template, 1, 0, True)
        assert processor.token_ids(processor.text(PROMPT, "n")) == expected[template]["input_ids"]


@pytest.mark.parametrize(
    ("config", "template"),
    [
        ({"model_type": "llava_llama", "vocab_size": 32_000, "rope_theta": 10_000.0}, "v1"),
        ({"model_type": "llava", "vocab_size": 32_000}, "v1"),
        ({"model_type": "ola_llama", "vocab_size": 128_256}, "llava_llama_3"),
        ({"model_type": "llava_llama", "vocab_size": 320, "rope_theta": 500_000.0}, "llava_llama_3"),
        ({"model_type": "llava_phi3", "vocab_size": 32_064}, "llava_phi_3"),
    ],
)
def test_the_template_is_that_of_the_language_model(config: dict[str, object], template: str) -> None:
    assert default_template(config) == template


def test_padding_puts_the_image_in_the_middle_of_its_mean_colour() -> None:
    image = Image.new("RGB", (4, 2), (255, 0, 0))
    square = pad_to_square(image, [0.48145466, 0.4578275, 0.40821073])
    assert square.size == (4, 4)
    assert square.getpixel((0, 0)) == (122, 116, 104)
    assert [square.getpixel((1, y))[0] for y in range(4)] == [122, 255, 255, 122]
    assert pad_to_square(square, [0, 0, 0]).tobytes() == square.tobytes()


def train_sentencepiece(folder: Path) -> Path:
    """A SentencePiece model as Llama's: bytes for what it does not know, text taken as it is, no piece over a line."""
    import sentencepiece

    text = "USER: ASSISTANT: Describe the image in two lines. A chat between a curious user and an assistant."
    (folder / "text.txt").write_text("\n".join([text, text.lower(), "The assistant gives helpful answers."] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "tokenizer"), vocab_size=340, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, split_digits=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        minloglevel=2,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("legacy", [True, False])
def test_text_is_split_as_by_the_fast_tokenizer_of_llama(legacy: bool, tmp_path: Path) -> None:
    folder = train_sentencepiece(tmp_path)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "add_bos_token": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer.load(str(folder), None, None)
    fast = hf.LlamaTokenizer.from_pretrained(folder)
    assert tokenizer.bos == [1]
    for text in (
        "A chat between. USER: ",
        "\nDescribe the image in two lines. ASSISTANT:",
        "ASSISTANT: n</s>",
        "a  é",
    ):
        assert [1, *tokenizer(text)] == fast(text).input_ids
