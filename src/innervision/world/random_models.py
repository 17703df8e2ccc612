"""Tiny models with random weights, saved as folders in the layout that their big brothers have on the Hub.

    OUT/llava    an image-text model: CLIP, a projector and a Llama of eight layers; 112 px, 64 image tokens
    OUT/depth    Depth Anything
    OUT/seg      OneFormer
    OUT/gen      the image encoder of Stable unCLIP

They have learnt nothing: they serve to try out and test the tool without a download. Their weights are drawn
wide, so that what an image shows is not drowned by what all images share.
"""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

SIZE = 112
"""Side in pixels of the images that the models are made for."""


def save_models(out: Path, seed: int = 0) -> dict[str, Path]:
    """Save the four models to folders in `out`; those that are there already stay.

    The same seed gives the same weights; the caller's random state is left as it was.

    Returns:
        Their folders, by name: llava, depth, seg, gen.
    """
    folders = {name: out / name for name in BUILDERS}
    for name, folder in folders.items():
        if folder.exists():
            continue
        unfinished = out / f".{name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            BUILDERS[name](unfinished)
        unfinished.rename(folder)
    return folders


def save_llava(folder: Path) -> None:
    """Save a LLaVA of width 64 with processor, tokenizer and chat template."""
    tokenizer = make_tokenizer([_TEXT])
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIZE,
            patch_size=14,
            projection_dim=64,
            initializer_range=0.1,
        ),
        text_config=hf.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=8,
            num_attention_heads=4,
            max_position_embeddings=512,
            initializer_range=0.1,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.image_token_id,
        image_seq_length=(SIZE // 14) ** 2,
    )
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    hf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def save_depth(folder: Path) -> None:
    """Save a Depth Anything whose DINOv2 has width 32 and patches of 42 px: 8 × 8 tokens of a 336 px image."""
    config = hf.DepthAnythingConfig(
        backbone_config=hf.Dinov2Config(  # type: ignore[call-arg]  # it takes out_indices, untyped
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=336,
            patch_size=42,
            out_indices=[1, 2, 3, 4],
            reshape_hidden_states=False,
        ),
        patch_size=42,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
    )
    hf.DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    hf.DPTImageProcessor(size={"height": 336, "width": 336}, **_IMAGENET).save_pretrained(folder)


def save_seg(folder: Path) -> None:
    """Save a OneFormer whose Swin has widths 4 to 32 and takes images of 112 px."""
    config = hf.OneFormerConfig(
        backbone_config=hf.SwinConfig(  # type: ignore[call-arg]  # it takes out_features, untyped
            embed_dim=4,
            depths=[1, 1, 2, 1],
            num_heads=[1, 1, 2, 2],
            window_size=7,
            image_size=SIZE,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        num_queries=8,
        conv_dim=32,
        mask_dim=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        dim_feedforward=32,
        num_attention_heads=2,
        query_dec_layers=1,
        text_encoder_width=32,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=256,
        text_encoder_proj_layers=1,
        text_encoder_n_ctx=4,
    )
    hf.OneFormerForUniversalSegmentation(config).save_pretrained(folder)
    size = {"shortest_edge": SIZE, "longest_edge": SIZE}
    hf.OneFormerImageProcessor(size=size, **_IMAGENET).save_pretrained(folder)


def save_gen(folder: Path) -> None:
    """Save a CLIP image encoder of width 32, and its image processor, in two subfolders as a pipeline has them."""
    config = hf.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=14,
        projection_dim=32,
        initializer_range=0.1,
        initializer_factor=3.0,
    )
    hf.CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    processor = hf.CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    processor.save_pretrained(folder / "feature_extractor")


BUILDERS: dict[str, Callable[[Path], None]] = {
    "llava": save_llava,
    "depth": save_depth,
    "seg": save_seg,
    "gen": save_gen,
}
"""What saves each model to an empty folder; the weights come from torch's random state."""

_IMAGENET: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{{ '\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ eos_token if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

_TEXT = "USER: Describe the image in two lines. ASSISTANT: Where is the cup? Is it nearer than the chair? Yes No"
"""What the tokenizer learns its few words from; it spells all others."""


def make_tokenizer(texts: Iterable[str]) -> hf.PreTrainedTokenizerFast:
    """Learn a byte-level BPE tokenizer from texts; it starts every text with <s>, as Llama's does."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True) for token in ("<s>", "</s>", "<pad>", "<image>")]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=special,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=512,
    )
