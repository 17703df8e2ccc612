"""Makes the configuration of any image-text family small, by the names of its entries."""

import re
from typing import Any

from transformers import PreTrainedConfig

DEPTH = 4
"""Layers of the decoder and of each tower."""
WIDTH, TOWER_WIDTH = 64, 32
"""Of the decoder and of each tower: two heads of 16 in a tower, four in the decoder."""

LAYERS = {"num_hidden_layers", "num_layers", "n_layers", "layers", "depth", "encoder_layers", "decoder_num_layers"}
"""Names of the number of layers."""

RULES: list[tuple[str, Any, Any]] = [
    ("|".join(LAYERS), DEPTH, DEPTH),
    (r"hidden_size|d_model|embed_dim|word_embed_proj_dim|residual_dim", WIDTH, TOWER_WIDTH),
    (r"text_hidden_size|out_hidden_size|output_dim|adapter_out_dim|projector_output_dim", WIDTH, WIDTH),
    (r"vision_hidden_size", TOWER_WIDTH, TOWER_WIDTH),
    (r"(\w+_)?(num_attention_heads|num_sliding_attention_heads|attention_heads|num_heads)", 4, 2),
    (r"(\w+_)?num_key_value_heads|num_attention_groups|linear_num_key_heads", 2, 2),
    (r"linear_num_value_heads", 4, 4),
    (r"qk_nope_head_dim|qk_rope_head_dim", 8, 8),
    (r"(\w+_)?head_dim|d_kv|query_pre_attn_scalar|(\w+_)?lora_rank|v_head_dim|qk_head_dim", 16, 16),
    (r"\w*(n_routed_experts|num_experts|num_local_experts)", 4, 4),
    (r"n_group|topk_group", 1, 1),
    (r"first_k_dense_replace", 1, 1),
    (r"sliding_window(_size)?", 16, 16),
    (r"max_position_embeddings", 2048, 2048),
    (r"initializer_range|init_std|initializer_factor", 0.2, 0.2),
    (r"num_position_embeddings", 64, 64),
]
"""What an entry becomes whose whole name matches: in the decoder's configurations, and in those of towers."""
TOO_LARGE = re.compile(r"\w*(size|dim|rank|_channels|ff|_input)")
"""Names of other numbers that become WIDTH where they are larger."""
KEPT = re.compile(r"\w*(patch_size|window_size|image_size|vocab_size\w*|max_size|kernel_size|chunk_size)|num_channels")
"""But these, which are no widths."""

PARTS = re.compile(r"(?!per_layer)\w+_config|encoder|decoder")
"""Names of configurations within a configuration."""
TOKEN_ID = re.compile(r"(\w+?)(?:_token)?_(?:id|index)")
"""How the configuration names the id of a token."""


def shrink(
    cls: type[PreTrainedConfig], hints: dict[str, Any], ids: dict[str, int], vocab_size: int
) -> PreTrainedConfig:
    """Make the default configuration of a class small.

    Args:
        cls: of the whole model's configuration.
        hints: entries to set in the end, nested as the configuration is; ids of tokens by name.
        ids: of the special tokens, by their name without `_token`.
        vocab_size: entries of the tokenizer.
    """
    content = _small(cls().to_dict(), "", ids, vocab_size)
    return cls.from_dict(_merge(content, hints, ids))


def _small(content: dict[str, Any], role: str, ids: dict[str, int], vocab_size: int) -> dict[str, Any]:
    tower = int(any(word in role for word in ("vision", "audio", "vq", "former", "perceiver")))
    depth = next((content[key] for key in sorted(LAYERS) if isinstance(content.get(key), int)), None)
    found = {}
    for key, value in content.items():
        if isinstance(value, dict) and PARTS.fullmatch(key):
            found[key] = _small(value, role + key, ids, vocab_size)
        elif key in ("vocab_size", "unpadded_vocab_size", "vocab_size_per_layer_input"):
            found[key] = vocab_size
        elif name := TOKEN_ID.fullmatch(key):
            found[key] = ids.get(name[1], value if isinstance(value, int) and value < vocab_size else None)
        elif key == "rope_parameters" and isinstance(value, dict):
            found[key] = _small_rope(value)
        elif key == "image_size" and value is not None:
            side = 4 * _patch_size(content)
            found[key] = side if isinstance(value, int) else [side, side]
        elif isinstance(value, list) and value and depth is not None:
            found[key] = _small_list(key, value, depth, tower)
        else:
            found[key] = _small_number(key, value, tower)
    return found


def _small_number(key: str, value: Any, tower: int) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    for pattern, *small in RULES:
        if re.fullmatch(pattern, key):
            return min(value, small[tower]) if value >= 1 else small[tower] if isinstance(value, float) else value
    if re.fullmatch(r"\w*(per_tok|moe_k|topk|top_k)", key):
        return min(value, 2)
    if TOO_LARGE.fullmatch(key) and not KEPT.fullmatch(key) and isinstance(value, int):
        return min(value, WIDTH)
    return value


def _small_list(key: str, value: list[Any], depth: int, tower: int) -> list[Any]:
    """Shorten a list with an entry for each layer, so that every kind remains; renumber a list of layers."""
    if len(value) == depth:
        kinds = [*dict.fromkeys(value)][:DEPTH]
        short = sorted(kinds * DEPTH, key=kinds.index)[:: len(kinds)]
        return [_small_number(key, each, tower) for each in short]
    if re.search("layer|ind[ei]|idx", key) and all(isinstance(each, int) and each < depth for each in value):
        return [*range(min(len(value), DEPTH))]
    return value


def _small_rope(value: dict[str, Any]) -> dict[str, Any]:
    """Give the sections of rotations over time, height and width the sum that heads of 16 have."""
    found = {key: _small_rope(part) if isinstance(part, dict) else part for key, part in value.items()}
    if found.get("mrope_section"):
        half = int(8 * found.get("partial_rotary_factor", 1.0))
        parts = len(found["mrope_section"])
        found["mrope_section"] = [half - half // 4 * (parts - 1)] + [half // 4] * (parts - 1)
    return found


def _patch_size(content: dict[str, Any]) -> int:
    patch = content.get("patch_size", 14)
    return patch if isinstance(patch, int) else patch[0]


def _merge(content: dict[str, Any], more: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    """Set entries; ids of tokens are given by name."""
    found = dict(content)
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(content.get(key), dict) and PARTS.fullmatch(key):
            found[key] = _merge(content[key], value, ids)
        else:
            found[key] = ids[value] if TOKEN_ID.fullmatch(key) and isinstance(value, str) else value
    return found
