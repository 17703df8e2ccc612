"""What the families need beyond the general rules to be made small."""

from typing import Any

MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
"""Rotations over time, height and width in heads of 16."""
GRIDS = [[56, 112], [112, 56], [112, 112]]
"""Of tiles of 56 pixels."""

HINTS: dict[str, dict[str, Any]] = {
    "apertus1p5": {"config": {"audio_config": {"codebook_dim": 32}}},
    "aria": {
        "config": {"projector_patch_to_query_dict": {49: 16}, "vision_config": {"image_size": 980, "patch_size": 140}},
        "processor": {"size_conversion": {980: 16, 490: 16}},
    },
    "chameleon": {"tags": ["<image>", *(f"IMGIMG{letter}Z" for letter in "BCDEFGHI")]},
    "cohere_compass": {"config": {"text_config": {"rope_parameters": {"sliding_attention": MROPE, "full_attention": MROPE}}}},
    "cosmos3_omni": {"processor_class": "Qwen3VLProcessor"},
    "deepseek_ocr2": {
        "config": {
            "text_config": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "num_experts_per_tok": 2},
            "vision_config": {"sam_config": {"downsample_channels": [64, 32]}},
        }
    },
    "diffusion_gemma": {"config": {"text_config": {"per_layer_config": {}}}, "image_class": "Gemma4ImageProcessor"},
    "dots3_note": {"config": {"text_config": {"per_layer_config": {}}}},
    "emu3": {"tags": ["<image>", "<|extra_200|>", *(f"<|visual token {code:06d}|>" for code in range(8))]},
    "ernie4_5_vl_moe": {
        "config": {
            "text_config": {"rope_parameters": MROPE | {"mrope_section": [3, 3, 2]}, "moe_intermediate_size": [64, 64]}
        }
    },
    "fast_vlm": {"processor_class": "LlavaProcessor", "image_class": "CLIPImageProcessor"},
    "fuyu": {"tags": ["|SPEAKER|", "|NEWLINE|"]},
    "gemma3n": {
        "config": {
            "text_config": {"intermediate_size": 64, "num_kv_shared_layers": 0, "activation_sparsity_pattern": None}
        }
    },
    "gemma4": {"config": {"text_config": {"per_layer_config": {}}}},
    "gemma4_unified": {"config": {"text_config": {"per_layer_config": {}}}},
    "glm46v": {"config": {"text_config": {"rope_parameters": MROPE}}},
    "glm4v_moe": {
        "config": {"text_config": {"rope_parameters": MROPE}},
        "image_class": "Glm4vImageProcessor",
        "video_processor": "Glm4vVideoProcessor",
    },
    "glm5_next": {"config": {"text_config": {"num_key_value_heads": 4, "index_topk": 16}}},
    "glm_ocr": {
        "config": {"text_config": {"rope_parameters": MROPE}},
        "processor_class": "Glm46VProcessor",
        "image_class": "Glm46VImageProcessor",
        "video_processor": "Glm46VVideoProcessor",
    },
    "glmga": {
        "config": {"text_config": {"rope_parameters": MROPE}},
        "processor_class": "Glm46VProcessor",
        "video_processor": "Glm46VVideoProcessor",
    },
    "granite4_vision": {
        "config": {
            "vision_config": {"hidden_size": 64},
            "deepstack_layer_map": [[0, 0], [1, 1]],
            "image_grid_pinpoints": GRIDS,
        },
        "image_processor": {"image_grid_pinpoints": GRIDS},
    },
    "hunyuan_vl": {"config": {"text_config": {"head_dim": 16}}},
    "instructblip": {"config": {"num_query_tokens": 8}, "processor": {"num_query_tokens": 8}},
    "kimi_k25": {"config": {"projection_hidden_size": 32}},
    "kosmos-2": {"processor_class": "Kosmos2Processor"},
    "kosmos-2.5": {"processor_class": "Kosmos2_5Processor"},
    "llama4": {"tokens": {"image_token": "<|image|>"}},
    "llava_next_video": {
        "config": {"image_grid_pinpoints": GRIDS},
        "image_processor": {"image_grid_pinpoints": GRIDS},
        "processor": {
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
    },
    "minimax_m3_vl": {"tokens": {"image_token": "]<]image[>[", "video_token": "]<]video[>["}},
    "mistral_large4": {"tokens": {"image_token": "[IMG]"}},
    "molmo2": {"config": {"adapter_config": {"vision_feature_layer": [-1, -2]}}},
    "muse_glimmer": {"config": {"out_hidden_size": 128}},
    "muse_spark": {"config": {"out_hidden_size": 128}},
    "paddleocr_vl": {"config": {"text_config": {"rope_parameters": MROPE}}},
    "qwen4_exp": {
        "config": {
            "text_config": {
                "indexer_n_heads": 2,
                "indexer_kv_heads": 1,
                "indexer_head_dim": 16,
                "indexer_budget": 8,
                "indexer_compress_ratio": 2,
            }
        }
    },
    "qwen3_vl_moe": {"image_class": "Qwen2VLImageProcessor", "video_processor": "Qwen3VLVideoProcessor"},
    "qwen2_5_omni_thinker": {
        "processor_class": "Qwen2_5OmniProcessor",
        "image_class": "Qwen2VLImageProcessor",
        "video_processor": "Qwen2VLVideoProcessor",
        "feature_extractor": "WhisperFeatureExtractor",
    },
    "qwen3_omni_moe_thinker": {
        "processor_class": "Qwen3OmniMoeProcessor",
        "image_class": "Qwen2VLImageProcessor",
        "video_processor": "Qwen2VLVideoProcessor",
        "feature_extractor": "WhisperFeatureExtractor",
    },
    "step3p7": {"config": {"text_config": {"sliding_window": 16}}},
    "unlimited_ocr": {"config": {"vision_config": {"sam_config": {"downsample_channels": [64, 32]}}}},
}
