"""Tiny random checkpoints of image-text families, made from the classes and defaults that Transformers has for each.

Nothing is written by hand for a family but what its entry in `tiny_hints.HINTS` says: its configuration is made small
by the names of its entries, its tokenizer gets the special tokens that its processor's source names, and its
processor is made of the classes that Transformers registers for it.

    folder = save_family("qwen3_5_moe", tmp_path)
    mllm = MLLM.load(str(folder))
"""

import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

from benchmarks.tiny_config import TOKEN_ID, shrink
from benchmarks.tiny_hints import HINTS
from innervision.mllm.model import redraw_constants

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from tiny_mllms import byte_tokenizer, write_template  # the tests are no package

SPECIAL = re.compile(r"""["'](<[^<>\s"'{}]+>|\[[A-Z_]+\])["']""")
"""How a special token is written in the source of a processor."""
ATTRIBUTE = re.compile(r"tokenizer\.(\w+_token)(?:_id)?\b|tokenizer, [\"'](\w+_token)(?:_id)?[\"']")
"""How a processor asks its tokenizer for one."""
LITERAL = re.compile(r"self\.(\w+_token) = \(?\s*(?:getattr\(tokenizer, .\w+., )?[\"'](\S+?)[\"']")
"""How it names one itself."""
OWN = {"bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token"}
"""Those that every tokenizer has an attribute for."""
MAPPINGS = {"video_processor": VIDEO_PROCESSOR_MAPPING_NAMES, "feature_extractor": FEATURE_EXTRACTOR_MAPPING_NAMES}
"""Where Transformers registers the other parts of a processor."""


def families() -> list[str]:
    """Give the model types that Transformers registers as image-text."""
    return list(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def save_family(family: str, folder: Path, seed: int = 0) -> Path:
    """Save a tiny model of a family (a model type) with its processor to `folder`, and return the folder.

    Raises:
        Exception: of the family's classes, where they cannot be made small in this way.
    """
    hints = HINTS.get(family, {})
    named, tags = special_tokens(family, hints)
    options = {"padding_side": hints.get("padding_side", "left"), "add_bos": hints.get("add_bos", False)}
    tokenizer = byte_tokenizer("<s>", "</s>", "<pad>", named, tags, **options)
    ids = {name.removesuffix("_token"): tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
    ids |= {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    ids.setdefault("image", tokenizer.convert_tokens_to_ids("<image>"))
    cls = getattr(hf, CONFIG_MAPPING_NAMES[family])
    vocabulary = {"vocabulary_map": tokenizer.get_added_vocab()} if hasattr(cls, "vocabulary_map") else {}
    config = shrink(cls, hints.get("config", {}) | vocabulary, ids, len(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = getattr(hf, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[family])(config)
        redraw_constants(model)
    model.save_pretrained(folder)
    if processor_class(family, hints) is None:
        tokenizer.save_pretrained(folder)
    else:
        vision = getattr(config, "vision_config", config)
        family_processor(family, hints, tokenizer, vision).save_pretrained(folder)
    return folder


def processor_class(family: str, hints: dict[str, Any]) -> type[ProcessorMixin] | None:
    """Give the class of a family's processor."""
    name = hints.get("processor_class") or PROCESSOR_MAPPING_NAMES.get(family)
    return getattr(hf, name) if name else None


def special_tokens(family: str, hints: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Give the special tokens that the source of a family's processor names: by attribute, and all others."""
    cls = processor_class(family, hints)
    source = inspect.getsource(sys.modules[cls.__module__]) if cls else ""
    config = getattr(hf, CONFIG_MAPPING_NAMES[family])().to_dict()
    names = {name for pair in ATTRIBUTE.findall(source) for name in pair}
    names |= {f"{found[1]}_token" for key in config if (found := TOKEN_ID.fullmatch(key))}
    names -= OWN | {"", "add_bos_token", "add_eos_token"}
    named = {name: f"<{name.removesuffix('_token')}>" for name in sorted(names)}
    named |= {name: token for name, token in LITERAL.findall(source) if name in names} | hints.get("tokens", {})
    named = {name: token for name, token in named.items() if token}
    tags = [*dict.fromkeys(SPECIAL.findall(source)), *hints.get("tags", ()), "<|im_start|>"]
    return named, [tag for tag in tags if tag not in named.values()]


def family_processor(
    family: str, hints: dict[str, Any], tokenizer: PreTrainedTokenizerFast, vision: PreTrainedConfig
) -> ProcessorMixin:
    """Make a family's processor of the classes that Transformers registers."""
    cls = processor_class(family, hints)
    parts: dict[str, Any] = {}
    for name in inspect.signature(cls.__init__).parameters:
        if name.endswith("tokenizer"):
            parts[name] = tokenizer
        elif name == "image_processor":
            parts[name] = image_processor(family, hints, vision)
        elif name in MAPPINGS and (part := _class(MAPPINGS[name], family, hints.get(name))):
            parts[name] = part(**hints.get(f"{name}_options", {}))
        elif name == "chat_template" and "no_template" not in hints:
            image = hints.get("image", getattr(tokenizer, "image_token", "<image>"))
            parts[name] = write_template("<|im_start|>{role}\n", image, "\n", reply="<|im_start|>assistant\n")
    return cls(**parts | hints.get("processor", {}))


def image_processor(family: str, hints: dict[str, Any], vision: PreTrainedConfig) -> Any:
    """Make a family's image processor, for pictures of the size that its tower takes or of up to six tokens a side."""
    cls = _class(IMAGE_PROCESSOR_MAPPING_NAMES, family, hints.get("image_class"))
    usual, small = cls(), {}
    size = {key: value for key, value in dict(getattr(usual, "size", None) or {}).items() if value}
    side, patch = (_first(getattr(vision, name, None)) for name in ("image_size", "patch_size"))
    if isinstance(patch, int) and getattr(usual, "patch_size", None):
        small["patch_size"] = patch if isinstance(usual.patch_size, int) else {"height": patch, "width": patch}
    if size.get("longest_edge", 0) > LARGEST_SIDE:  # an area
        token = (patch or usual.patch_size) * (getattr(usual, "merge_size", None) or 1)
        small["size"] = {"shortest_edge": (2 * token) ** 2, "longest_edge": (6 * token) ** 2}
    elif size and isinstance(side, int):
        small["size"] = dict.fromkeys(size, side)
        if getattr(usual, "crop_size", None):
            small["crop_size"] = {"height": side, "width": side}
    return cls(**small | hints.get("image_processor", {}))


LARGEST_SIDE = 5000
"""What is larger is no side of a picture but the number of its pixels."""


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) else value


def _class(registered: Mapping[str, Any], family: str, name: str | None) -> Any:
    """Give the class of this name, else the one that Transformers registers for a family, if any."""
    known = registered.get(family) or {}
    name = name or (known if isinstance(known, str) else known.get("torchvision") or known.get("pil"))
    return getattr(hf, name) if name else None
