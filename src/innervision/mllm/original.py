"""Models in the checkpoint layout of the original LLaVA code (LLaVA-1.5, OLA-VLM and its probes), not Hugging Face's.

Their weights are read into Hugging Face's own classes: LLaVA for a CLIP ViT tower, FastVLM for a CLIP-ConvNeXT tower
(which hands a map to its projector, where LLaVA's hands tokens). Kept of the original: the order in which prompt
and image become tokens, its conversation templates, its padding of images to a square, and its task tokens.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    FastVlmConfig,
    LlamaConfig,
    LlavaConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend
from transformers.utils import is_sentencepiece_available, is_timm_available

from innervision.errors import InnerVisionError
from innervision.shards import Shards, find_file

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

UNUSED_KEYS = re.compile(
    r"image_(depth|seg|gen)_heads\.|dav2_backbone\.|da_v2_head\.|oneformer\.|gen_encoder\.|(depth|seg|gen)_logit_scale$"
    r"|model\.special_(depth|seg|gen)_tokens$|.*\.rotary_emb\.inv_freq$|.*\.embeddings\.position_ids$"
)
"""Tensors of such checkpoints that the MLLM does not need: probes, experts, heads of training, constants, and task
tokens, which are read apart."""

BLOCK = re.compile(r"model\.vision_tower\.vision_tower\.stages\.(\d+)\.blocks\.(\d+)\.")
"""Stage and number of a block of a ConvNeXT tower."""

CONVNEXT_SIZE = 768
"""Side of the image for a ConvNeXT tower whose name does not end in `-resN`."""


def is_original(config: dict[str, Any]) -> bool:
    """Tell from a configuration whether it belongs to a checkpoint in the original layout."""
    return "mm_vision_tower" in config


@dataclass
class Original:
    """How a checkpoint in the original layout becomes a Hugging Face model and its inputs."""

    config: PreTrainedConfig
    """Of the Hugging Face class."""
    processor: "OriginalProcessor"
    key_mapping: dict[str, str]
    """From the checkpoint's names of tensors to those of the class (regular expressions)."""
    tower: str | None
    """Where the vision tower's weights are, if the checkpoint does not hold them."""
    task_tokens: Tensor
    """(N, D): learnt tokens that follow the image."""

    @classmethod
    def read(
        cls, name: str, config: dict[str, Any], revision: str | None = None, template: str | None = None
    ) -> "Original":
        """Read what a checkpoint needs beside its weights.

        Args:
            name: a folder or a Hub id.
            config: the content of its config.json.
            revision: branch, tag or commit on the Hub.
            template: one of `TEMPLATES`; by default the one that the language model was tuned with.

        Raises:
            InnerVisionError: it is of a kind that is not known here, or its vision tower cannot be found.
        """
        _check(name, config)
        shards = Shards(name, revision)
        text = text_config(name, config)
        tower = str(config["mm_vision_tower"])
        if "convnext" in tower.lower():
            convnext, size = convnext_config(name, tower, shards)
            full: FastVlmConfig | LlavaConfig = FastVlmConfig(
                vision_config=convnext,
                text_config=text,
                image_token_index=IMAGE_TOKEN,
                image_seq_length=(size // 32) ** 2,
            )
            images = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
            inside, elsewhere = "model.vision_tower.timm_model.", None
        else:
            place = find_tower(name, tower)
            vision, images = _clip(name, place)
            whole = config.get("mm_vision_select_feature", "patch") == "cls_patch"
            full = LlavaConfig(
                vision_config=vision,
                text_config=text,
                image_token_index=IMAGE_TOKEN,
                image_seq_length=(vision.image_size // vision.patch_size) ** 2 + whole,
                vision_feature_layer=config["mm_vision_select_layer"],
                vision_feature_select_strategy="full" if whole else "default",
            )
            holds_tower = any(key.startswith("model.vision_tower.") for key in shards.files)
            inside, elsewhere = "model.vision_tower.", None if holds_tower else place
        tokens = read_task_tokens(name, config, shards)
        processor = OriginalProcessor(
            tokenizer=Tokenizer.load(name, revision, text),
            image_processor=images,
            template=template or default_template(config),
            num_image_tokens=full.image_seq_length,
            num_task_tokens=len(tokens),
            pad=config.get("image_aspect_ratio") == "pad",
        )
        mapping = {
            r"^model\.vision_tower\.vision_tower\.": inside,
            r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
            r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
            r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
        }
        return cls(full, processor, mapping, elsewhere, tokens)

    def complete(self, model: PreTrainedModel, missing: Sequence[str], unexpected: Sequence[str]) -> list[str]:
        """Give a loaded model its tower, where that lies elsewhere.

        Args:
            model: of the class that `config` names.
            missing: names of weights that the checkpoint does not hold.
            unexpected: names of the checkpoint's tensors that the model has no place for.

        Returns:
            The weights that are still missing.

        Raises:
            ValueError: the checkpoint holds tensors that nothing is known of.
        """
        if unknown := sorted(key for key in unexpected if not UNUSED_KEYS.match(key)):
            raise ValueError(
                f"the checkpoint holds {len(unknown)} unknown tensors, among them {', '.join(unknown[:3])}"
            )
        if self.tower is not None:
            tower = model.get_encoder("image")
            loaded = CLIPVisionModel.from_pretrained(self.tower, dtype=model.dtype)
            tower.load_state_dict(loaded.state_dict())
            missing = [key for key in missing if not key.startswith("model.vision_tower.")]
        return list(missing)

    def embed(self, model: PreTrainedModel, random: bool = False) -> None:
        """Make a model take the ids below 0; task tokens are drawn anew as the original does it, if `random`."""
        tokens = torch.randn_like(self.task_tokens) if random else self.task_tokens
        words: Any = model.get_input_embeddings()
        model.set_input_embeddings(Embedding(words, tokens))


class Embedding(nn.Embedding):
    """Word embeddings, and task tokens for ids below `IMAGE_TOKEN`. The image's own place is filled by the model."""

    def __init__(self, words: nn.Embedding, task_tokens: Tensor) -> None:
        """Share the weights of `words`; `task_tokens` is (N, D)."""
        number, width = words.weight.shape
        super().__init__(number, width, padding_idx=words.padding_idx, _weight=words.weight)
        self.task: nn.Embedding | None = None
        if len(task_tokens):
            self.task = nn.Embedding.from_pretrained(task_tokens.to(words.weight))

    def forward(self, input: Tensor) -> Tensor:
        """Give the embeddings (B, T, D) of ids (B, T)."""
        embeddings = super().forward(input.clamp(min=0))
        if self.task is None:
            return embeddings
        number = IMAGE_TOKEN - 1 - input  # 0 … for task tokens, below 0 for others
        tokens = self.task(number.clamp(0, self.task.num_embeddings - 1))
        return torch.where((number >= 0)[..., None], tokens, embeddings)


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
        source: dict[str, Any] = {"revision": revision}
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

    def apply_chat_template(self, conversation: list[list[dict[str, Any]]], **_: Any) -> dict[str, Tensor]:
        """Make `input_ids`, `attention_mask` and `pixel_values` of conversations.

        Each has one image and one text from the user, the same text in all, and perhaps a reply.
        """
        user, *reply = conversation[0]
        prompt = user["content"][-1]["text"]
        ids = self.token_ids(prompt, reply[0]["content"][0]["text"] if reply else None)
        images = [turns[0]["content"][0]["image"] for turns in conversation]
        input_ids = torch.tensor(ids).expand(len(images), -1).clone()  # (B, T)
        return {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": self.pixels(images),
        }

    def text(self, prompt: str, reply: str | None = None) -> str:
        """Give the conversation as text, with `<image>` where the image goes."""
        turn, answer = TEMPLATES[self.template]
        return turn.format(prompt) + (answer.format(reply) if reply is not None else "")

    def token_ids(self, prompt: str, reply: str | None = None) -> list[int]:
        """Give the ids of the conversation; the image and the task tokens have theirs below 0.

        The text before and after the image is split into tokens separately.
        """
        before, after = self.text(prompt, reply).split("<image>")
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


def text_config(name: str, config: dict[str, Any]) -> PreTrainedConfig:
    """Make the configuration of the language model.

    Raises:
        InnerVisionError: it is neither a Llama (Vicuna) nor a Phi-3.
    """
    kind = config["model_type"]
    family = Phi3Config if "phi" in kind else LlamaConfig if kind == "llava" or "llama" in kind else None
    if family is None:
        raise InnerVisionError(f"{name} is a {kind!r} model; of the original layout Llama, Vicuna and Phi-3 are known")
    own = {key: value for key, value in config.items() if not key.startswith(("mm_", "image_"))}
    rope = own.pop("rope_scaling", None) or {"rope_type": "default"}
    own.setdefault("rope_parameters", {"rope_theta": own.pop("rope_theta", 10_000.0), **rope})
    for key in ("model_type", "architectures", "torch_dtype", "transformers_version", "_name_or_path", "auto_map"):
        own.pop(key, None)
    return family(**own)


def convnext_config(name: str, tower: str, shards: Shards) -> tuple[TimmWrapperConfig, int]:
    """Make the configuration of a CLIP-ConvNeXT tower, and give the side of its image.

    Depths and widths are those of the checkpoint's tensors.

    Raises:
        InnerVisionError: the checkpoint does not hold the tower, it is of no known kind, or timm is not installed.
    """
    if not is_timm_available():
        raise InnerVisionError(f"{name} has a ConvNeXT tower: pip install 'innervision[original]'")
    kind = re.search(r"convnext_(large|xxlarge)", tower)
    if kind is None:
        raise InnerVisionError(f"{name} has the vision tower {tower!r}; known are convnext_large and convnext_xxlarge")
    prefix = "model.vision_tower.vision_tower.stages."
    blocks = {tuple(map(int, found.groups())) for key in shards.files if (found := BLOCK.match(key))}
    keys = {stage: f"{prefix}{stage}.blocks.0.conv_dw.weight" for stage in range(4)}
    if lacking := [key for key in keys.values() if key not in shards.files]:
        raise InnerVisionError(f"{name} does not hold its vision tower {tower!r}: {lacking[0]} is missing")
    shapes = shards.shapes(keys.values())
    model_args = {
        "depths": [1 + max(block for at, block in blocks if at == stage) for stage in range(4)],
        "dims": [shapes[keys[stage]][0] for stage in range(4)],
    }
    size = re.search(r"-res(\d+)", tower)
    architecture = f"convnext_{kind[1]}"
    config = TimmWrapperConfig(architecture=architecture, model_args=model_args, do_pooling=False)
    config.hidden_size = model_args["dims"][-1]  # what the projector asks for
    return config, int(size[1]) if size else CONVNEXT_SIZE


def find_tower(name: str, tower: str) -> str:
    """Give the place of a vision tower of this name: a folder, here or beside the checkpoint, or a Hub id."""
    beside = [Path(name) / tower, Path(name).parent / tower] if Path(name).is_dir() else []
    folder = next((place for place in (Path(tower), *beside) if (place / "config.json").is_file()), None)
    return str(folder) if folder else tower


def read_task_tokens(name: str, config: dict[str, Any], shards: Shards) -> Tensor:
    """Read the learnt tokens that follow the image, `num_task_tokens` for each target in the order of `aux_mode`.

    A target's tokens are stored in as many groups, each of which is averaged. A probe checkpoint is run without
    them, as the original runs it.

    Returns:
        (N, D), N = 0 where there are none.

    Raises:
        InnerVisionError: the checkpoint lacks them, or they do not divide into groups.
    """
    number = config.get("num_task_tokens", 0)
    if not number or "probe_mode" in config:
        return torch.zeros(0, config["hidden_size"])
    keys = [f"model.special_{target}_tokens" for target in config["aux_mode"].split("-")]
    if lacking := [key for key in keys if key not in shards.files]:
        raise InnerVisionError(f"{name} names {number} task tokens for each target but lacks {', '.join(lacking)}")
    tensors = shards.read(keys)
    if wrong := [key for key in keys if len(tensors[key]) % number]:
        raise InnerVisionError(f"{name}: {wrong[0]} has {len(tensors[wrong[0]])} rows, which are not {number} groups")
    return torch.cat([tensors[key].unflatten(0, (number, -1)).mean(dim=1) for key in keys])


def _check(name: str, config: dict[str, Any]) -> None:
    """Raise InnerVisionError where a checkpoint asks for something that is not done here."""
    known = {
        "mm_projector_type": ("mlp2x_gelu",),
        "image_aspect_ratio": ("pad", "square", None),
        "mm_use_im_start_end": (False, None),
        "task_token_format": ("emb", "expand_emb", None),
    }
    for key, values in known.items():
        if config.get(key) not in values:
            raise InnerVisionError(f"{name} has {key}={config[key]!r}; known is {', '.join(map(repr, values))}")


def _clip(name: str, tower: str) -> tuple[Any, CLIPImageProcessorPil]:
    try:
        return CLIPVisionConfig.from_pretrained(tower), CLIPImageProcessorPil.from_pretrained(tower)
    except (OSError, ValueError) as error:
        raise InnerVisionError(
            f"{name} needs the vision tower {tower!r} (mm_vision_tower), which is neither a folder, here or beside "
            "it, nor a model on the Hub that can be reached"
        ) from error
