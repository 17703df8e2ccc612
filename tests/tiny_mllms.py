"""Tiny random image-text models, one per family of Hugging Face, each with a processor that really works.

Built in memory from configs, nothing is downloaded: four decoder layers of width 32, two or three vision
layers of width 16 to 32, images of 28 to 56 px a tile, a byte-level tokenizer of a few hundred entries.
What a family does in its own way is kept: its special tokens, chat template, side of padding, tiles.

    folder = save_tiny("qwen2_vl", tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin
from transformers.models.smolvlm import processing_smolvlm

Pair = tuple[PreTrainedModel, ProcessorMixin]


def save_tiny(family: str, folder: Path, seed: int = 0) -> Path:
    """Save model and processor of a family (a key of `FAMILIES`) to `folder`, and return the folder.

    The same seed gives the same weights; the caller's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = FAMILIES[family]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def llava(chat_template: str | None = "llava") -> Pair:
    """CLIP's CLS token is dropped by the model; all images are cropped to one square."""
    tokenizer = byte_tokenizer("<s>", "</s>", "<pad>", named={"image_token": "<image>"}, add_bos=True)
    config = hf.LlavaConfig(
        vision_config=_clip(),
        text_config=hf.LlamaConfig(**_text(tokenizer)),
        image_token_index=tokenizer.image_token_id,
        image_seq_length=16,
    )
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template and _USER_ASSISTANT,
    )
    return hf.LlavaForConditionalGeneration(config), processor


def llava_plain() -> Pair:
    """LLaVA as many older checkpoints come: without a chat template."""
    return llava(chat_template=None)


def vipllava() -> Pair:
    """The projector takes five layers of the vision tower side by side, behind a norm."""
    _, processor = llava()
    tokenizer = processor.tokenizer
    config = hf.VipLlavaConfig(
        vision_config=_clip(),
        text_config=hf.LlamaConfig(**_text(tokenizer)),
        image_token_index=tokenizer.image_token_id,
        image_seq_length=16,
        vision_feature_layers=[-1, -2, 1],
    )
    return hf.VipLlavaForConditionalGeneration(config), processor


def llava_next() -> Pair:
    """The whole image and its tiles, a learned vector closing each row."""
    tokenizer = byte_tokenizer("<s>", "</s>", "<pad>", named={"image_token": "<image>"}, add_bos=True)
    config = hf.LlavaNextConfig(
        vision_config=_clip(),
        text_config=hf.MistralConfig(**_text(tokenizer), sliding_window=None),
        image_token_index=tokenizer.image_token_id,
        image_seq_length=16,
        image_grid_pinpoints=_GRIDS,
    )
    processor = hf.LlavaNextProcessor(
        hf.LlavaNextImageProcessor(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=_GRIDS
        ),
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=write_template("[INST] ", "<image>\n", " [/INST]", reply=""),
    )
    return hf.LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> Pair:
    """As LLaVA-NeXT, with SigLIP (no CLS token), and a processor that takes videos too."""
    named = {"image_token": "<image>", "video_token": "<video>"}
    tokenizer = byte_tokenizer(None, "<|im_end|>", "<|endoftext|>", named, ["<|im_start|>"])
    config = hf.LlavaOnevisionConfig(
        vision_config=_siglip(28, vision_use_head=False),
        text_config=hf.Qwen2Config(**_text(tokenizer)),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=_GRIDS,
    )
    size = {"height": 28, "width": 28}
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=_GRIDS),
        tokenizer,
        hf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=_chatml("<image>\n"),
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def qwen2_vl() -> Pair:
    """Images keep their shape; the pixels of all of them come as one list of patches."""
    tokenizer = _qwen_tokenizer()
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 7}
    config = hf.Qwen2VLConfig(
        vision_config=vision | {"initializer_range": 0.2},
        text_config=_text(tokenizer) | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
        **_qwen_ids(tokenizer),
    )
    return hf.Qwen2VLForConditionalGeneration(config), _qwen_processor(hf.Qwen2VLProcessor, tokenizer)


def qwen2_5_vl() -> Pair:
    """As Qwen2-VL; two of three vision layers attend inside windows, so the patches are reordered."""
    tokenizer = _qwen_tokenizer()
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 7,
        "window_size": 28,
        "fullatt_block_indexes": [2],
        "out_hidden_size": 32,
        "initializer_range": 0.2,
    }
    config = hf.Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=_text(tokenizer) | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
        **_qwen_ids(tokenizer),
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config), _qwen_processor(hf.Qwen2_5_VLProcessor, tokenizer)


def qwen3_vl() -> Pair:
    """Deepstack: features of two inner vision layers are added to the states after decoder layers 1 and 2."""
    tokenizer = _qwen_tokenizer()
    config = hf.Qwen3VLConfig(
        vision_config=_qwen3_vision() | {"deepstack_visual_indexes": [0, 1]},
        text_config=_text(tokenizer) | {"rope_parameters": _INTERLEAVED_MROPE},
        **_qwen_ids(tokenizer),
    )
    processor = _qwen_processor(hf.Qwen3VLProcessor, tokenizer, video_processor=hf.Qwen3VLVideoProcessor)
    return hf.Qwen3VLForConditionalGeneration(config), processor


def internvl() -> Pair:
    """One to four tiles and, where there are several, a thumbnail; tiles of all images in one batch."""
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = byte_tokenizer(None, "<|im_end|>", "<|endoftext|>", named, ["<|im_start|>"])
    config = hf.InternVLConfig(
        vision_config=_vision(image_size=42, use_mean_pooling=False, layer_scale_init_value=1.0),
        text_config=hf.Qwen2Config(**_text(tokenizer)),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=9,
        tie_word_embeddings=False,
    )
    size = {"height": 42, "width": 42}
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer,
        hf.InternVLVideoProcessor(size=size),
        image_seq_length=9,
        chat_template=_chatml("<IMG_CONTEXT>\n"),
    )
    return hf.InternVLForConditionalGeneration(config), processor


def smolvlm() -> Pair:
    """Rows and columns of tiles, each announced by a tag, then the whole image; padded with empty images."""
    tokenizer = byte_tokenizer("<|im_start|>", "<end_of_utterance>", "<|im_end|>", _IDEFICS3_TOKENS, _IDEFICS3_TAGS)
    config = hf.SmolVLMConfig(
        vision_config=_vision(image_size=42),
        text_config=hf.LlamaConfig(**_text(tokenizer)),
        image_token_id=tokenizer.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
    )
    processing_smolvlm.num2words = processing_smolvlm.num2words or str  # it spells out numbers of video frames
    processor = hf.SmolVLMProcessor(
        hf.SmolVLMImageProcessor(size={"longest_edge": 84}, max_image_size={"longest_edge": 42}),
        tokenizer,
        hf.SmolVLMVideoProcessor(size={"longest_edge": 42}, max_image_size={"longest_edge": 42}),
        image_seq_len=9,
        chat_template="<|im_start|>" + _IDEFICS_CHAT,
    )
    return hf.SmolVLMForConditionalGeneration(config), processor


def idefics3() -> Pair:
    """As SmolVLM, with another processor, and a tokenizer that puts a start token itself."""
    tokenizer = byte_tokenizer(
        "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>", _IDEFICS3_TOKENS, _IDEFICS3_TAGS, add_bos=True
    )
    config = hf.Idefics3Config(
        vision_config=_vision(image_size=42),
        text_config=hf.LlamaConfig(**_text(tokenizer)),
        image_token_id=tokenizer.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
    )
    processor = hf.Idefics3Processor(
        hf.Idefics3ImageProcessor(size={"longest_edge": 84}, max_image_size={"longest_edge": 42}),
        tokenizer,
        image_seq_len=9,
        chat_template="<|begin_of_text|>" + _IDEFICS_CHAT,
    )
    return hf.Idefics3ForConditionalGeneration(config), processor


def paligemma() -> Pair:
    """No chat template; image and prompt see each other in both directions; states scaled on entry."""
    tokenizer = byte_tokenizer("<bos>", "<eos>", "<pad>", named={"image_token": "<image>"}, padding_side="left")
    image_processor = hf.SiglipImageProcessor(size={"height": 28, "width": 28})
    image_processor.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(image_processor, tokenizer)
    config = hf.PaliGemmaConfig(
        vision_config=_siglip(28, vision_use_head=False),
        text_config=hf.GemmaConfig(**_text(tokenizer)),
        image_token_index=tokenizer.image_token_id,
        projection_dim=32,
        hidden_size=32,
    )
    return hf.PaliGemmaForConditionalGeneration(config), processor


def gemma3() -> Pair:
    """Sliding and full attention in turn; image tokens see each other both ways; states scaled on entry."""
    named = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    turns = ["<start_of_turn>", "<end_of_turn>"]
    tokenizer = byte_tokenizer("<bos>", "<eos>", "<pad>", named, turns, padding_side="left", add_bos=True)
    layers = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2}
    config = hf.Gemma3Config(
        vision_config=_siglip(56, vision_use_head=False),
        text_config=hf.Gemma3TextConfig(**_text(tokenizer), **layers, query_pre_attn_scalar=8),
        mm_tokens_per_image=16,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessor(size={"height": 56, "width": 56}),
        tokenizer,
        image_seq_length=16,
        chat_template="{{ bos_token }}" + _GEMMA_CHAT,
    )
    model = hf.Gemma3ForConditionalGeneration(config)
    _draw(model.model.multi_modal_projector.mm_input_projection_weight)  # starts at zero: the model would be blind
    return model, processor


def idefics2() -> Pair:
    """Images keep their shape behind a mask; a perceiver makes them eight tokens each, between two marks."""
    named = {"image_token": "<image>", "image_boundary_token": "<fake_token_around_image>"}
    tokenizer = byte_tokenizer("<s>", "</s>", "<unk>", named, ["<end_of_utterance>"], add_bos=True)
    perceiver = {"hidden_size": 32, "resampler_n_latents": 8, "resampler_depth": 2, "resampler_n_heads": 4}
    config = hf.Idefics2Config(
        vision_config=_vision(image_size=42),
        perceiver_config=perceiver | {"resampler_head_dim": 8, "num_key_value_heads": 2, "initializer_range": 0.2},
        text_config=hf.MistralConfig(**_text(tokenizer), sliding_window=None),
        image_token_id=tokenizer.image_token_id,
    )
    model = hf.Idefics2ForConditionalGeneration(config)
    _draw(model.model.connector.perceiver_resampler.latents)
    processor = hf.Idefics2Processor(
        hf.Idefics2ImageProcessor(size={"shortest_edge": 28, "longest_edge": 42}),
        tokenizer,
        image_seq_len=8,
        chat_template=_IDEFICS_CHAT,
    )
    return model, processor


def mistral3() -> Pair:
    """Pixtral: any shape, a break token after each row of image tokens, four patches merged to one token."""
    marks = ["[INST]", "[/INST]", "[IMG_BREAK]", "[IMG_END]"]
    tokenizer = byte_tokenizer("<s>", "</s>", "<pad>", {"image_token": "[IMG]"}, marks, add_bos=True)
    config = hf.Mistral3Config(
        vision_config=hf.PixtralVisionConfig(**_vision(image_size=84)),
        text_config=hf.MistralConfig(**_text(tokenizer), sliding_window=None),
        image_token_index=tokenizer.image_token_id,
        tie_word_embeddings=False,
    )
    processor = hf.PixtralProcessor(
        hf.PixtralImageProcessor(size={"longest_edge": 84}, patch_size={"height": 7, "width": 7}),
        tokenizer,
        patch_size=7,
        spatial_merge_size=2,
        chat_template=write_template("[INST]", "[IMG]", "[/INST]", reply=""),
    )
    return hf.Mistral3ForConditionalGeneration(config), processor


def aya_vision() -> Pair:
    """Numbered tiles; in the text one token asks for the image, in the ids another one holds its place."""
    marks = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL"]
    marks += [f"TILE_{tile}" for tile in range(1, 5)] + ["<image>", "<|START_OF_TURN_TOKEN|>"]
    named = {"patch_token": "<|IMG_PATCH|>"}
    tokenizer = byte_tokenizer("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<PAD>", named, marks, add_bos=True)
    layers = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2}
    config = hf.AyaVisionConfig(
        vision_config=_siglip(56, vision_use_head=False),
        text_config=hf.Cohere2Config(**_text(tokenizer), **layers),
        image_token_index=tokenizer.patch_token_id,
    )
    processor = hf.AyaVisionProcessor(
        hf.GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer,
        patch_size=7,
        downsample_factor=2,
        img_size=56,
        chat_template=write_template("<|START_OF_TURN_TOKEN|>{role}", "<image>", "<|END_OF_TURN_TOKEN|>", reply=""),
    )
    return hf.AyaVisionForConditionalGeneration(config), processor


def lfm2_vl() -> Pair:
    """Convolutions instead of attention in three of four decoder layers; vision patches behind a mask."""
    named = {
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail": "<|img_thumbnail|>",
    }
    tags = ["<|im_start|>", *(f"<|img_row_{row}_col_{col}|>" for row in range(1, 5) for col in range(1, 5))]
    tokenizer = byte_tokenizer("<|startoftext|>", "<|im_end|>", "<|pad|>", named, tags, add_bos=True)
    vision = {k: v for k, v in _vision().items() if k != "initializer_range"}
    config = hf.Lfm2VlConfig(
        vision_config=hf.Siglip2VisionConfig(**vision, num_patches=16, vision_use_head=False),
        text_config=hf.Lfm2Config(
            **_text(tokenizer),
            layer_types=["conv", "conv", "full_attention", "conv"],
            block_auto_adjust_ff_dim=False,
        ),
        image_token_id=tokenizer.image_token_id,
        projector_hidden_size=32,
    )
    processor = hf.Lfm2VlProcessor(
        hf.Lfm2VlImageProcessor(
            tile_size=42,
            size={"height": 42, "width": 42},
            encoder_patch_size=7,
            min_tiles=2,
            max_tiles=4,
            min_image_tokens=4,
            max_image_tokens=9,
        ),
        tokenizer,
        chat_template="{{ bos_token }}" + _chatml("<image>"),
    )
    return hf.Lfm2VlForConditionalGeneration(config), processor


def mllama() -> Pair:
    """The image enters by cross-attention in layers 2 and 4; one image token, outside the vocabulary."""
    tags = ["<|python_tag|>", "<|start_header_id|>", "<|end_header_id|>"]
    named = {"image_token": "<|image|>"}  # the last entry: its id is the size of the vocabulary
    tokenizer = byte_tokenizer("<|begin_of_text|>", "<|eot_id|>", "<|pad|>", named, tags, add_bos=True)
    text = _text(tokenizer) | {"vocab_size": tokenizer.image_token_id, "cross_attention_layers": [1, 3]}
    vision = _vision(image_size=28, num_global_layers=1, intermediate_layers_indices=[0, 1], vision_output_dim=48)
    vision["attention_heads"] = vision.pop("num_attention_heads")
    model = hf.MllamaForConditionalGeneration(
        hf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=tokenizer.image_token_id)
    )
    for layer in (1, 3):  # the gates start closed: the model would be blind
        block = model.model.language_model.layers[layer]
        _draw(block.cross_attn_attn_gate, block.cross_attn_mlp_gate)
    processor = hf.MllamaProcessor(
        hf.MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=4),
        tokenizer,
        chat_template="{{ bos_token }}"
        + write_template(
            "<|start_header_id|>{role}<|end_header_id|>\n\n",
            "<|image|>",
            "<|eot_id|>",
            reply="<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    )
    return model, processor


def blip_2() -> Pair:
    """No chat template; the processor puts image tokens first; Q-Former; the decoder (OPT) is wrapped."""
    tokenizer = byte_tokenizer("<s>", "</s>", "<pad>", {}, ["<image>"], padding_side="right", add_bos=True)
    text = _text(tokenizer)
    config = hf.Blip2Config(
        vision_config=hf.Blip2VisionConfig(**_vision(image_size=28)),
        qformer_config=hf.Blip2QFormerConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.2,
        ),
        text_config=hf.OPTConfig(
            vocab_size=text["vocab_size"],
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=256,
            init_std=0.2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        num_query_tokens=8,
        image_text_hidden_size=16,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = hf.Blip2ForConditionalGeneration(config)
    _draw(model.query_tokens)  # they start at zero, one like the other
    processor = hf.Blip2Processor(
        hf.BlipImageProcessor(size={"height": 28, "width": 28}), tokenizer, num_query_tokens=8
    )
    return model, processor


def qwen3_5() -> Pair:
    """Linear attention in three of four decoder layers."""
    tokenizer = _qwen_tokenizer()
    linear = {
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    rope = _INTERLEAVED_MROPE | {"partial_rotary_factor": 0.5}
    config = hf.Qwen3_5Config(
        vision_config=_qwen3_vision(),
        text_config=_text(tokenizer) | linear | {"head_dim": 16, "rope_parameters": rope},
        **_qwen_ids(tokenizer),
    )
    processor = _qwen_processor(hf.Qwen3VLProcessor, tokenizer, video_processor=hf.Qwen3VLVideoProcessor)
    return hf.Qwen3_5ForConditionalGeneration(config), processor


def glm4v() -> Pair:
    """As Qwen2-VL, with begin and end tokens of its own and learned positions resized to the image."""
    named = {
        "image_token": "<|image|>",
        "video_token": "<|video|>",
        "image_start_token": "<|begin_of_image|>",
        "image_end_token": "<|end_of_image|>",
        "video_start_token": "<|begin_of_video|>",
        "video_end_token": "<|end_of_video|>",
    }
    tokenizer = byte_tokenizer(None, "<|endoftext|>", "<|endoftext|>", named, ["[gMASK]", "<|user|>", "<|assistant|>"])
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32, "num_heads": 2}
    config = hf.Glm4vConfig(
        vision_config=vision | {"image_size": 28, "patch_size": 7, "initializer_range": 0.2},
        text_config=_text(tokenizer) | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
        **{f"{name}_id": getattr(tokenizer, f"{name}_id") for name in named},
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": 2 * 84 * 84}  # in pixels of area, both frames together
    processor = hf.Glm4vProcessor(
        hf.Glm4vImageProcessor(size=size, patch_size=7),
        tokenizer,
        hf.Glm4vVideoProcessor(size=size, patch_size=7),
        chat_template="[gMASK]"
        + write_template("<|{role}|>\n", "<|begin_of_image|><|image|><|end_of_image|>", "", reply="<|assistant|>\n"),
    )
    return hf.Glm4vForConditionalGeneration(config), processor


def deepseek_vl() -> Pair:
    """The projector is called an aligner; images are padded to a square."""
    tokenizer = byte_tokenizer("<bos>", "<eos>", "<pad>", {"image_token": "<image_placeholder>"}, add_bos=True)
    config = hf.DeepseekVLConfig(
        vision_config=_siglip(28, vision_use_head=False),
        text_config=hf.LlamaConfig(**_text(tokenizer)),
        image_token_id=tokenizer.image_token_id,
    )
    processor = hf.DeepseekVLProcessor(
        hf.DeepseekVLImageProcessor(size={"height": 28, "width": 28}),
        tokenizer,
        chat_template=write_template("User: ", "<image_placeholder>", "\n\n", reply="Assistant:"),
        num_image_tokens=16,
    )
    return hf.DeepseekVLForConditionalGeneration(config), processor


def janus() -> Pair:
    """Beside its vision tower a second way to images, for drawing them."""
    named = {
        "image_token": "<image_placeholder>",
        "boi_token": "<begin_of_image>",
        "eoi_token": "<end_of_image>",
    }
    tokenizer = byte_tokenizer("<bos>", "<eos>", "<pad>", named, add_bos=True)
    vision = {k: v for k, v in _vision(image_size=28).items() if k != "intermediate_size"}
    drawing = {
        "embed_dim": 4,
        "num_embeddings": 8,
        "latent_channels": 32,
        "base_channels": 32,
        "num_res_blocks": 1,
    }
    config = hf.JanusConfig(
        vision_config=vision | {"projection_dim": 32, "num_image_tokens": 16},
        vq_config=drawing | {"channel_multiplier": [1], "projection_dim": 32, "image_token_embed_dim": 32},
        text_config=hf.LlamaConfig(**_text(tokenizer)),
        image_token_id=tokenizer.image_token_id,
    )
    processor = hf.JanusProcessor(
        hf.JanusImageProcessor(size={"height": 28, "width": 28}),
        tokenizer,
        chat_template=write_template("<|User|>: ", "<image_placeholder>\n", "\n\n", reply="<|Assistant|>:"),
        num_image_tokens=16,
    )
    return hf.JanusForConditionalGeneration(config), processor


def ovis2() -> Pair:
    """Image tokens are mixtures of a visual vocabulary, and the five marks around them are learned too."""
    marks = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tokenizer = byte_tokenizer(
        None, "<|im_end|>", "<|endoftext|>", {"atom": "<IMG_ATOM>"}, [*marks, "<|im_start|>", "<image>"]
    )
    config = hf.Ovis2Config(
        vision_config=_vision(image_size=56, vocab_size=64) | {"patch_size": 14},
        text_config=hf.Qwen2Config(**_text(tokenizer)),
        image_token_id=tokenizer.atom_id,
        visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(marks),
        vocab_size=len(tokenizer),
        hidden_size=32,
    )
    processor = hf.Ovis2Processor(
        hf.Ovis2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer,
        chat_template=_chatml("<image>\n"),
        image_seq_length=16,
    )
    return hf.Ovis2ForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[[], Pair]] = {
    "llava": llava,
    "llava_plain": llava_plain,
    "vipllava": vipllava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "internvl": internvl,
    "smolvlm": smolvlm,
    "idefics3": idefics3,
    "paligemma": paligemma,
    "gemma3": gemma3,
    "idefics2": idefics2,
    "mistral3": mistral3,
    "aya_vision": aya_vision,
    "lfm2_vl": lfm2_vl,
    "mllama": mllama,
    "blip-2": blip_2,
    "qwen3_5": qwen3_5,
    "glm4v": glm4v,
    "deepseek_vl": deepseek_vl,
    "janus": janus,
    "ovis2": ovis2,
}
"""Builders by `model_type` (`llava_plain` is a second `llava`); weights come from torch's random state."""

WITHOUT_VISION_LAYER = {"lfm2_vl"}
"""Families that have no layer -1: it projects tile by tile."""


def gemma3n_text() -> PreTrainedModel:
    """The language model of Gemma 3n alone: its two decoder layers keep four streams of states, 32 wide."""
    config = hf.Gemma3nTextConfig(
        vocab_size=64,
        vocab_size_per_layer_input=64,
        hidden_size=32,
        hidden_size_per_layer_input=8,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        laurel_rank=4,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=16,
        activation_sparsity_pattern=[0.0, 0.0],
    )
    torch.manual_seed(0)
    return hf.Gemma3nTextModel(config).eval()


def byte_tokenizer(
    bos: str | None,
    eos: str,
    pad: str,
    named: dict[str, str],
    tags: Sequence[str] = (),
    padding_side: str = "left",
    add_bos: bool = False,
) -> PreTrainedTokenizerFast:
    """Byte-level tokenizer with whole words for common prompts, so that any text is a short sequence.

    `named` become attributes (`tokenizer.image_token`, `tokenizer.image_token_id`); `tags` are special tokens
    without one; `add_bos` makes the tokenizer itself start every text with `bos`.
    """
    words = "Describe the image in two lines . What is this ? user assistant User Assistant USER : \n\n"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [word.replace("\n", "Ċ") for word in words.split(" ")]
    vocab = {entry: i for i, entry in enumerate(dict.fromkeys([*alphabet, *entries, *("Ġ" + e for e in entries)]))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = dict.fromkeys(token for token in (bos, eos, pad, *tags, *named.values()) if token)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if add_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        extra_special_tokens=named,
        padding_side=padding_side,
        model_max_length=2048,
    )


@torch.no_grad()
def _draw(*weights: torch.Tensor) -> None:
    """Random values for weights that the library starts at a constant and training would move."""
    for weight in weights:
        weight.normal_(std=0.5)


def write_template(opening: str, image: str, closing: str, reply: str) -> str:
    """Jinja chat template: each message as `opening`, its images and texts in order, `closing`; then `reply`.

    `opening` may name `{role}`.
    """

    def say(text: str) -> str:  # as an expression: bare newlines after a block are lost
        return "{{ " + json.dumps(text) + " }}" if text else ""

    return (
        "{% for message in messages %}"
        + "{{ message['role'] }}".join(say(text) for text in opening.split("{role}"))
        + "{% for part in message['content'] %}"
        + "{% if part['type'] == 'image' %}"
        + say(image)
        + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
        + say(closing)
        + "{% endfor %}{% if add_generation_prompt %}"
        + say(reply)
        + "{% endif %}"
    )


def _chatml(image: str) -> str:
    return write_template("<|im_start|>{role}\n", image, "<|im_end|>\n", reply="<|im_start|>assistant\n")


_USER_ASSISTANT = write_template("USER: ", "<image>\n", " ", reply="ASSISTANT:")
_GEMMA_CHAT = write_template(
    "<start_of_turn>{role}\n", "<start_of_image>", "<end_of_turn>\n", reply="<start_of_turn>model\n"
)
_IDEFICS_CHAT = write_template("User:", "<image>", "<end_of_utterance>\n", reply="Assistant:")
_IDEFICS3_TOKENS = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}
_IDEFICS3_TAGS = [f"<row_{row}_col_{col}>" for row in (1, 2) for col in (1, 2)]
_GRIDS = [[28, 56], [56, 28], [56, 56]]
_INTERLEAVED_MROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True}


def _text(tokenizer: PreTrainedTokenizerFast) -> dict:
    """Four decoder layers of width 32. Wide initial weights, so that no state drowns in its residual."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _vision(**more: object) -> dict:
    """Three vision layers of width 16, patches of 7 px."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    return sizes | {"patch_size": 7, "initializer_range": 0.2} | more


def _clip() -> hf.CLIPVisionConfig:
    return hf.CLIPVisionConfig(**_vision(image_size=28, projection_dim=16))


def _siglip(image_size: int, **more: object) -> hf.SiglipVisionConfig:
    return hf.SiglipVisionConfig(**_vision(image_size=image_size, **more))


def _qwen_tokenizer() -> PreTrainedTokenizerFast:
    named = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    }
    return byte_tokenizer(None, "<|im_end|>", "<|endoftext|>", named, ["<|im_start|>"])


def _qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {name: getattr(tokenizer, name) for name in names}


def _qwen3_vision() -> dict:
    sizes = {"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    return sizes | {"patch_size": 7, "num_position_embeddings": 36, "initializer_range": 0.2}


def _qwen_processor(
    cls: type[ProcessorMixin],
    tokenizer: PreTrainedTokenizerFast,
    video_processor: type = hf.Qwen2VLVideoProcessor,
) -> ProcessorMixin:
    size = {"shortest_edge": 28 * 28, "longest_edge": 84 * 84}  # in pixels of area
    return cls(
        hf.Qwen2VLImageProcessor(size=size, patch_size=7),
        tokenizer,
        video_processor(size=size, patch_size=7),
        chat_template=_chatml("<|vision_start|><|image_pad|><|vision_end|>"),
    )
