"""What the families need beyond the general rules to be made small."""

from typing import Any

MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
"""Rotations over time, height and width in heads of 16."""
HALF_MROPE = MROPE | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
"""The same, of half of each head."""
GRIDS = [[56, 112], [112, 56], [112, 112]]
"""Of tiles of 56 pixels."""
SAM = {"downsample_channels": [64, 32], "num_hidden_layers": 1, "global_attn_indexes": []}
"""One layer with windows: its pictures cannot be made small."""

HINTS: dict[str, dict[str, Any]] = {
    "aria": {
        "config": {"projector_patch_to_query_dict": {49: 16}, "vision_config": {"image_size": 980, "patch_size": 140}},
        "processor": {"size_conversion": {980: 16, 490: 16}},
    },
    "cosmos3_omni": {"processor_class": "Qwen3VLProcessor"},
    "fuyu": {"tags": ["|SPEAKER|", "|NEWLINE|"]},
    "glm46v": {"config": {"text_config": {"rope_parameters": MROPE}}},
    "glm4v_moe": {
        "config": {"text_config": {"rope_parameters": HALF_MROPE}},
        "image_class": "Glm4vImageProcessor",
        "video_processor": "Glm4vVideoProcessor",
    },
    "glm_ocr": {
        "config": {"text_config": {"rope_parameters": HALF_MROPE}},
        "processor_class": "Glm46VProcessor",
        "image_class": "Glm46VImageProcessor",
        "video_processor": "Glm46VVideoProcessor",
    },
    "glmga": {
        "config": {"text_config": {"rope_parameters": HALF_MROPE}},
        "processor_class": "Glm46VProcessor",
        "video_processor": "Glm46VVideoProcessor",
    },
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
    "cohere2_vision": {"image_processor": {"patch_size": 2}},
    "chameleon": {
        "config": {"vq_config": {"num_embeddings": 8}},
        "tags": ["<image>", *(f"IMGIMG{letter}Z" for letter in "ABCDEFGH")],
        "image_processor": {"size": {"shortest_edge": 128}, "crop_size": {"height": 128, "width": 128}},
        "processor": {"image_seq_length": 64},
    },
    "deepseek_vl_hybrid": {
        "image_processor": {"high_res_size": {"height": 64, "width": 64}},
        "processor": {"num_image_tokens": 16},
    },
    "emu3": {
        "config": {"vq_config": {"codebook_size": 8, "base_channels": 32, "hidden_size": 128}},
        "tags": ["<image>", "<|extra_200|>", *(f"<|visual token {code:06d}|>" for code in range(8))],
        "image_processor": {"min_pixels": 32 * 32, "max_pixels": 64 * 64},
    },
    "ernie4_5_vl_moe": {
        "config": {
            "text_config": {"rope_parameters": MROPE | {"mrope_section": [3, 3, 2]}, "moe_intermediate_size": [64, 64]}
        },
        "video_processor_options": {"draw_on_frames": False},
    },
    "fast_vlm": {
        "config": {"vision_config": {"architecture": "test_efficientnet", "hidden_size": 256, "model_args": {}}},
        "processor_class": "LlavaProcessor",
        "image_class": "CLIPImageProcessor",
        "image_processor": {"size": {"shortest_edge": 160}, "crop_size": {"height": 160, "width": 160}},
        "processor": {"patch_size": 32, "vision_feature_select_strategy": "full", "num_additional_image_tokens": 0},
    },
    "gemma3n": {
        "config": {
            "text_config": {"intermediate_size": 64, "num_kv_shared_layers": 0, "activation_sparsity_pattern": None},
            "vision_config": {"architecture": "test_efficientnet", "hidden_size": 256, "model_args": {}},
            "vision_soft_tokens_per_image": 25,
        },
        "image_processor": {"size": {"height": 160, "width": 160}},
        "processor": {"image_seq_length": 25},
    },
    "glm5_next": {
        "config": {"text_config": {"num_key_value_heads": 4, "index_topk": 16}},
    },
    "granite4_vision": {
        "config": {
            "vision_config": {"hidden_size": 64, "image_size": 56, "patch_size": 14},
            "deepstack_layer_map": [[0, 0], [1, 1]],
            "spatial_target_layers": [0, 1, 2, 3],
            "downsample_rate": "1/2",
            "image_grid_pinpoints": GRIDS,
        },
        "image_processor": {"image_grid_pinpoints": GRIDS},
        "processor": {"patch_size": 14, "vision_feature_select_strategy": "full", "downsample_rate": "1/2"},
    },
    "granite_docling": {
        "config": {"vision_config": {"image_size": 128}},
        "image_processor": {"max_patches": 4},
        "processor": {"image_seq_len": 4},
    },
    "instructblip": {
        "config": {"num_query_tokens": 8},
        "tokens": {"image_token": None},
        "tags": ["<image>"],
        "processor": {"num_query_tokens": 8},
    },
    "muse_glimmer": {"config": {"out_hidden_size": 128}, "image_processor": {"max_image_tokens": 36}},
    "muse_spark": {"config": {"out_hidden_size": 128}, "image_processor": {"max_image_tokens": 36}},
    "perception_lm": {
        "config": {
            "vision_config": {"architecture": "test_vit", "hidden_size": 64, "model_args": {"embed_dim": 64}},
            "projector_pooling_ratio": 2,
        },
        "image_processor": {"tile_size": 160, "max_num_tiles": 4},
        "processor": {"patch_size": 16, "pooling_ratio": 2},
    },
    "qwen3_omni_moe_thinker": {
        "config": {"vision_start_token_id": "vision_bos"},
        "processor_class": "Qwen3OmniMoeProcessor",
        "image_class": "Qwen2VLImageProcessor",
        "video_processor": "Qwen2VLVideoProcessor",
        "feature_extractor": "WhisperFeatureExtractor",
    },
    "step3p7": {
        "config": {
            "text_config": {"sliding_window": 16},
            "vision_config": {"image_size": 224, "max_position_embeddings": 256},
        },
        "image_processor": {"size": {"height": 224, "width": 224}, "patch_size": 112, "max_image_size": 672},
    },
    "minicpmv4_6": {"image_processor": {"scale_resolution": 112, "max_slice_nums": 4}},
    "minicpmv4_7": {"image_processor": {"scale_resolution": 112, "max_slice_nums": 4}},
    "minicpm_ocr": {"image_processor": {"scale_resolution": 112, "max_slice_nums": 4}},
    "apertus1p5": {
        "config": {
            "image_token_offset": 100,
            "audio_token_offset": 164,
            "audio_config": {"codebook_dim": 32},
        },
        "image_processor": {"size": {"min_pixels": 64 * 64, "max_pixels": 96 * 96}},
    },
    "lighton_ocr": {
        "config": {"vision_config": {"image_size": 168}},
        "processor": {"patch_size": 14, "spatial_merge_size": 2},
    },
    "gemma4": {
        "config": {
            "text_config": {"per_layer_config": {}},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 4,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 16,
            },
        },
        "image_processor": {"max_soft_tokens": 70},
    },
    "gemma4_unified": {
        "config": {"text_config": {"per_layer_config": {}}, "vision_config": {}},
        "image_processor": {"max_soft_tokens": 70},
    },
    "pp_chart2table": {"config": {"vision_config": {"image_size": 256}}, "image": "<image>" * 16},
    "hunyuan_vl": {
        "config": {
            "text_config": {"head_dim": 16, "rope_parameters": MROPE | {"mrope_section": [2, 2, 2, 2]}},
        },
        "image": "<image_start><image><image_end>",
    },
    "kimi_k25": {
        "config": {"projection_hidden_size": 32, "text_config": {"head_dim": 8, "num_key_value_heads": 4}},
        "image_processor": {"max_patches": 144},
    },
    "mistral_large4": {
        "config": {
            "vision_config": {"image_size": 168},
            "text_config": {"head_dim": 8, "num_key_value_heads": 4},
        },
        "tokens": {"image_token": "[IMG]"},
        "processor": {"patch_size": 14, "spatial_merge_size": 2},
    },
    "llama4": {
        "config": {"vision_config": {"intermediate_size": 128}, "image_token_index": "patch"},
        "tokens": {"image_token": "<|image|>", "patch_token": "<|patch|>"},
        "image_processor": {"max_patches": 4},
    },
    "qianfan_ocr": {
        "config": {"image_token_id": "context_image"},
        "image": "<image>",
        "tokens": {"image_token": None},
        "tags": ["<image>"],
        "image_processor": {"max_patches": 4, "min_patches": 1},
        "processor": {"image_seq_length": 4},
    },
    "qwen2_5_omni_thinker": {
        "config": {"vision_start_token_id": "vision_bos", "text_config": {"rope_parameters": MROPE}},
        "processor_class": "Qwen2_5OmniProcessor",
        "image_class": "Qwen2VLImageProcessor",
        "video_processor": "Qwen2VLVideoProcessor",
        "feature_extractor": "WhisperFeatureExtractor",
    },
    "kosmos-2": {
        "config": {"latent_query_num": 64, "text_config": {"vocab_size": 2048}},
        "processor_class": "Kosmos2Processor",
        "tokens": {"unk_token": "<unk>"},
    },
    "nemotron_h_omni": {
        "config": {"text_config": {"n_groups": 2}},
        "feature_extractor": "ParakeetFeatureExtractor",
    },
    "diffusion_gemma": {
        "config": {
            "text_config": {"per_layer_config": {}, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64}
        },
        "image_class": "Gemma4ImageProcessor",
        "video_processor": "Gemma4VideoProcessor",
        "feature_extractor": "Gemma4AudioFeatureExtractor",
        "image_processor": {"max_soft_tokens": 70},
    },
    "molmo2": {
        "config": {
            "vision_config": {"image_size": [168, 168], "num_position_embeddings": 144},
            "adapter_config": {"vision_feature_layer": [-1, -2], "hidden_size": 32},
        },
        "tokens": {
            "image_patch_token": "<im_patch>",
            "image_start_token": "<im_start>",
            "image_end_token": "<im_end>",
            "low_res_image_start_token": "<low_res_im_start>",
        },
    },
    "instructblipvideo": {"tokens": {"image_token": None, "video_token": None}, "tags": ["<image>", "<video>"]},
    "dots3_note": {
        "config": {
            "text_config": {"per_layer_config": {}, "num_key_value_heads": 4},
            "vision_config": {"per_layer_config": {}, "adapter_in_dim": 32},
            "audio_config": {"adapter_input_size": 32},
        },
        "image_processor": {"temporal_patch_size": 1},
    },
    "got_ocr2": {
        "config": {"vision_config": {"image_size": 1024, "num_hidden_layers": 1, "global_attn_indexes": []}},
        "no_template": True,
    },
    "deepseek_ocr2": {
        "config": {
            "text_config": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "num_experts_per_tok": 2},
            "vision_config": {"sam_config": SAM},
        }
    },
    "unlimited_ocr": {"config": {"vision_config": {"sam_config": SAM}}},
    "kosmos-2.5": {
        "config": {
            "latent_query_num": 16,
            "vision_config": {"patch_embed_hidden_size": 768, "num_hidden_layers": 1},
        },
        "processor_class": "Kosmos2_5Processor",
        "processor": {"num_image_tokens": 16},
    },
    "inkling2_loop": {
        "config": {
            "text_config": {"loop_layer_index_start": 1, "loop_layer_index_end": 3, "n_layers_per_attn_res_block": 1}
        }
    },
    "cohere_compass": {
        "config": {"text_config": {"rope_parameters": {"sliding_attention": MROPE, "full_attention": MROPE}}}
    },
}
