"""Folders of small models with random weights, of the real architectures, as their authors publish them."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    BertConfig,
    CLIPConfig,
    ConvNextConfig,
    Dinov2Config,
    DINOv3ViTConfig,
    GPT2Config,
    IJepaConfig,
    MetaClip2Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ResNetConfig,
    Siglip2Config,
    SwinConfig,
    T5Config,
    TimesformerConfig,
    VideoMAEConfig,
    ViTConfig,
    VivitConfig,
    VJEPA2Config,
    XCLIPConfig,
)

_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = [*_SPECIAL, "a", "the", "red", "blue", "ball", "square", "slides", "and", "then", "it", "grows", "."]
_TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
_IMAGE = {**_TRANSFORMER, "image_size": 32}
_TEXT = {
    **_TRANSFORMER,
    "vocab_size": len(WORDS),
    "max_position_embeddings": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SQUARE = {"size": {"height": 32, "width": 32}, "do_center_crop": False}
Preprocessor = dict[str, Any]

IMAGE_MODELS: dict[str, tuple[PretrainedConfig, Preprocessor]] = {
    "dinov2": (Dinov2Config(**_IMAGE, patch_size=8, mlp_ratio=1), {"image_processor_type": "BitImageProcessor"}),
    "dinov3": (DINOv3ViTConfig(**_IMAGE, patch_size=8), {"image_processor_type": "DINOv3ViTImageProcessor", **_SQUARE}),
    "vit": (ViTConfig(**_IMAGE, patch_size=8), {"image_processor_type": "ViTImageProcessor", **_SQUARE}),
    "convnext": (
        ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], image_size=32),
        {"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.875, "size": {"shortest_edge": 32}},
    ),
    "resnet": (
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]),
        {"image_processor_type": "BitImageProcessor"},
    ),
    "swin": (
        SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2),
        {"image_processor_type": "ViTImageProcessor", **_SQUARE},
    ),
    "ijepa": (IJepaConfig(**_IMAGE, patch_size=8), {"image_processor_type": "ViTImageProcessor", **_SQUARE}),
    "clip": (
        CLIPConfig(text_config=_TEXT, vision_config={**_IMAGE, "patch_size": 8}, projection_dim=12),
        {"image_processor_type": "CLIPImageProcessor"},
    ),
    "metaclip2": (
        MetaClip2Config(text_config=_TEXT, vision_config={**_IMAGE, "patch_size": 8}, projection_dim=12),
        {"image_processor_type": "CLIPImageProcessor"},
    ),
    "siglip2": (
        Siglip2Config(text_config=_TEXT, vision_config={**_TRANSFORMER, "patch_size": 8, "num_patches": 16}),
        {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 16},
    ),
}
VIDEO_MODELS: dict[str, tuple[PretrainedConfig, Preprocessor]] = {
    "videomae": (
        VideoMAEConfig(**_IMAGE, patch_size=8, num_frames=4),
        {"image_processor_type": "VideoMAEImageProcessor"},
    ),
    "timesformer": (
        TimesformerConfig(**_IMAGE, patch_size=8, num_frames=4),
        {"image_processor_type": "VideoMAEImageProcessor"},
    ),
    "vivit": (
        VivitConfig(**_IMAGE, tubelet_size=[2, 8, 8], num_frames=4),
        {"image_processor_type": "VivitImageProcessor", "offset": True, "rescale_factor": 1 / 127.5},
    ),
    "vjepa2": (
        VJEPA2Config(
            patch_size=8,
            crop_size=32,
            frames_per_clip=8,
            hidden_size=24,
            num_attention_heads=2,
            num_hidden_layers=1,
            mlp_ratio=1,
            pred_hidden_size=24,
            pred_num_attention_heads=2,
            pred_num_hidden_layers=1,
        ),
        {"video_processor_type": "VJEPA2VideoProcessor"},
    ),
    "xclip": (
        XCLIPConfig(
            text_config=_TEXT,
            vision_config={
                **_IMAGE,
                "patch_size": 8,
                "num_frames": 4,
                "mit_hidden_size": 16,
                "mit_intermediate_size": 16,
                "mit_num_hidden_layers": 1,
                "mit_num_attention_heads": 2,
            },
            projection_dim=16,
            prompt_num_attention_heads=2,
        ),
        {"image_processor_type": "VideoMAEImageProcessor"},
    ),
}
TEXT_MODELS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**_TEXT),
    "t5": T5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0),
    "gpt2": GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=24, eos_token_id=2),
    "clip": IMAGE_MODELS["clip"][0],
    "xclip": VIDEO_MODELS["xclip"][0],
}


def write_model(folder: Path, config: PretrainedConfig, preprocessor: Preprocessor | None = None) -> Path:
    """A folder with random weights, a tokenizer of the words above and, if given, a preprocessor."""
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    if preprocessor is not None:
        stated = {
            "do_resize": True,
            "size": {"shortest_edge": 36},
            "do_center_crop": True,
            "crop_size": {"height": 32, "width": 32},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.4, 0.3],
            "image_std": [0.25, 0.2, 0.3],
            "resample": 3,
            **preprocessor,
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    pad = {} if config.model_type == "gpt2" else {"pad_token": "<pad>"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", unk_token="<unk>", model_max_length=24, **pad
    )
    fast.save_pretrained(folder)
    return folder
