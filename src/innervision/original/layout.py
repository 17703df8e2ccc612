"""Models in the checkpoint layout of the original LLaVA code (LLaVA-1.5, OLA-VLM and its probes), not Hugging Face's.

Their weights are read into Hugging Face's own classes: LLaVA for a CLIP ViT tower, FastVLM for a CLIP-ConvNeXT tower
(which hands a map to its projector, where LLaVA's hands tokens). Kept of the original: the order in which prompt
and image become tokens, its conversation templates, its padding of images to a square, and its task tokens.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
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
from transformers.utils import is_timm_available

from innervision.checkpoints.layout import ForeignExpert, ForeignMLLM, Layout
from innervision.checkpoints.shards import Shards, check_types
from innervision.errors import InnerVisionError, few
from innervision.original.conversation import IMAGE_TOKEN, OriginalProcessor, Tokenizer, default_template
from innervision.original.held_experts import find_beside, read_held_expert
from innervision.terminal import tell

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


class OriginalLayout(Layout):
    """Checkpoints as the original code saves them."""

    def read_mllm(
        self, name: str, config: dict[str, Any], revision: str | None, template: str | None
    ) -> ForeignMLLM | None:
        """Read a LLaVA-1.5 or OLA-VLM. See `Layout.read_mllm`."""
        return Original.read(name, config, revision, template) if "mm_vision_tower" in config else None

    def read_expert(self, kind: str, source: str, revision: str | None = None) -> ForeignExpert | None:
        """Load what a probe checkpoint holds, or Depth Anything V2 from its authors' file. See `Layout.read_expert`."""
        return read_held_expert(kind, source, revision)


@dataclass
class Original(ForeignMLLM):
    """How a checkpoint in the original layout becomes a Hugging Face model and its inputs."""

    config: PreTrainedConfig
    processor: OriginalProcessor
    key_mapping: dict[str, str]
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
            place = find_beside(name, tower, "config.json")
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
        """Give a loaded model its tower, where that lies elsewhere. See `ForeignMLLM.complete`."""
        if unknown := sorted(key for key in unexpected if not UNUSED_KEYS.match(key)):
            raise ValueError(
                f"the checkpoint holds {len(unknown)} unknown tensors, among them {', '.join(unknown[:3])}"
            )
        if self.tower is not None:
            tell(f"the checkpoint names its vision tower: {self.tower}")
            tower = model.get_encoder("image")
            loaded: Any = CLIPVisionModel.from_pretrained(self.tower, dtype=model.dtype, output_loading_info=True)
            if lacking := loaded[1]["missing_keys"]:
                raise ValueError(f"the vision tower {self.tower} lacks {len(lacking)} weights, as {few(lacking)}")
            check_types(loaded[0], self.tower)
            tower.load_state_dict(loaded[0].state_dict())
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
