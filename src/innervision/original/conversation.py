"""Prompt and image as the original code makes tokens of them: its templates, its tokenizer, its padding to a square."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend
from transformers.utils import is_sentencepiece_available

from innervision.checkpoints.shards import find_file
from innervision.errors import InnerVisionError

IMAGE_TOKEN = -200
"""Stands for the image in `input_ids`; here once for each of its tokens. -201, -202 … are the task tokens."""

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

TEMPLATES = {
    "v1": (f"{SYSTEM} USER: <image>\n{{}} ASSISTANT:", " {}</s>"),
    "llava_llama_3": (
        f"<|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\n{}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "{}<|eot_id|>",
    ),
    "llava_phi_3": (
        "<|system|>\nYou are a helpful AI assistant.<|end|>\n<|user|>\n<image>\n{}<|end|>\n<|assistant|>\n",
        "{}<|end|>",
    ),
}
"""Conversation templates by name: the user's turn up to the reply, and the reply where one is given."""
TEMPLATES["vicuna_v1"] = TEMPLATES["v1"]


@dataclass
class Tokenizer:
    """Text to ids, piece by piece, as the original does it."""

    backend: Any
    """SentencePiece where the checkpoint has a `tokenizer.model`, as the original's `use_fast=False`; else what
    Transformers loads."""
    bos: list[int]
    """The id that begins a sequence, if there is one."""

    @classmethod
    def load(cls, name: str, revision: str | None, config: PreTrainedConfig) -> "Tokenizer":
        """Load the tokenizer of a checkpoint.

        Raises:
            InnerVisionError: it needs a package that is not installed.
        """
        source: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
        if not find_file(name, "tokenizer.model", revision):
            backend: Any = AutoTokenizer.from_pretrained(name, config=config, **source)
            first = backend("a").input_ids[:1]
            return cls(backend, first if first == [backend.bos_token_id] else [])
        if not is_sentencepiece_available():
            raise InnerVisionError(f"{name} has a SentencePiece tokenizer: pip install 'innervision[original]'")
        backend = SentencePieceBackend.from_pretrained(name, **source)
        return cls(backend, [backend.bos_token_id] if backend.init_kwargs.get("add_bos_token", True) else [])

    def __call__(self, text: str) -> list[int]:
        """Give the ids of a piece of text, without the one that begins a sequence."""
        if not isinstance(self.backend, SentencePieceBackend):
            return self.backend(text).input_ids[len(self.bos) :]
        ids: Any = self.backend.convert_tokens_to_ids(self._pieces(text))
        return ids

    def _pieces(self, text: str) -> list[str]:
        """Split as Transformers' LlamaTokenizer did, before and after it was mended (`legacy`)."""
        if self.backend.legacy or not text:
            return self.backend.tokenize(text)
        pieces = self.backend.tokenize("▁" + text.replace("▁", " "))
        drop = len(pieces) > 1 and pieces[0] == "▁" and pieces[1] in self.backend.all_special_tokens
        return pieces[1:] if drop else pieces


@dataclass
class OriginalProcessor:
    """Makes the model's inputs; has of a Hugging Face processor what `InputBuilder` asks for."""

    tokenizer: Tokenizer
    image_processor: Any
    template: str
    num_image_tokens: int
    num_task_tokens: int
    pad: bool
    """Whether images are padded to a square first."""
    chat_template: str = field(init=False)

    def __post_init__(self) -> None:
        """Look the template up.

        Raises:
            InnerVisionError: there is none of this name.
        """
        if self.template not in TEMPLATES:
            raise InnerVisionError(f"there is no template {self.template!r}; known are {', '.join(TEMPLATES)}")
        self.chat_template = TEMPLATES[self.template][0]

    def apply_chat_template(self, conversation: list[dict[str, Any]], **_: Any) -> str:
        """Give a conversation as text: one image and one text from the user, and perhaps a reply."""
        user, *reply = conversation
        return self.text(user["content"][-1]["text"], reply[0]["content"][0]["text"] if reply else None)

    def __call__(self, *, images: list[list[Image.Image]], text: list[str], **_: Any) -> dict[str, Tensor]:
        """Make `input_ids`, `attention_mask` and `pixel_values` of images, each beside the same text."""
        input_ids = torch.tensor(self.token_ids(text[0])).expand(len(images), -1).clone()  # (B, T)
        return {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": self.pixels([image for [image] in images]),
        }

    def text(self, prompt: str, reply: str | None = None) -> str:
        """Give the conversation as text, with `<image>` where the image goes."""
        turn, answer = TEMPLATES[self.template]
        return turn.format(prompt) + (answer.format(reply) if reply is not None else "")

    def token_ids(self, text: str) -> list[int]:
        """Give the ids of a conversation; the image and the task tokens have theirs below 0.

        The text before and after the image is split into tokens separately.
        """
        before, after = text.split("<image>")
        image = [IMAGE_TOKEN] * self.num_image_tokens
        task = [IMAGE_TOKEN - 1 - i for i in range(self.num_task_tokens)]
        return self.tokenizer.bos + self.tokenizer(before) + image + task + self.tokenizer(after)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Make pixels (B, 3, H, W) of RGB images."""
        mean = self.image_processor.image_mean
        squares = [pad_to_square(image, mean) for image in images] if self.pad else list(images)
        return self.image_processor(squares, return_tensors="pt")["pixel_values"]


def pad_to_square(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """Put an RGB image in the middle of a square of one colour, `mean` (each 0…1) cut to 8 bits."""
    width, height = image.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in mean))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def default_template(config: dict[str, Any]) -> str:
    """Tell from the language model which template it was tuned with.

    Phi-3 by its type; Llama 3 by its vocabulary or the base of its rotary embedding; else Vicuna.
    """
    if "phi" in config["model_type"]:
        return "llava_phi_3"
    is_llama_3 = config["vocab_size"] >= 128_000 or config.get("rope_theta", 0) >= 500_000
    return "llava_llama_3" if is_llama_3 else "v1"
