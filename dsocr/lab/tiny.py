"""Tiny random models of both architectures, for tests and for trying the recipes without a checkpoint."""

import math
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    DeepseekOcr2Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    UnlimitedOcrConfig,
)

from dsocr.data.synthetic import LETTERS
from dsocr.models.loading import find_model_class
from dsocr.samples.processor import OcrProcessor
from dsocr.samples.tokenizer import BOS, EOS, IMAGE_TOKEN, PAD


SIZE_DIVISOR = 16
PATCH_SIZE = 4
_BASE_SIZE = 1024 // SIZE_DIVISOR
_GRID = _BASE_SIZE // PATCH_SIZE // 4
# Hidden size of SAM, the first and costliest vision encoder.
_SAM_WIDTH = 64


def text_config(vocabulary: int, width: int, layers: int) -> dict[str, Any]:
    """Fields of a small language model: one dense layer, then mixtures of four experts.

    `width` is a multiple of 64, bitsandbytes' smallest block.
    """
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "moe_intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "max_position_embeddings": 2048,
        "mlp_layer_types": ["dense"] + ["sparse"] * (layers - 1),
        "bos_token_id": 0,
        "eos_token_id": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    }


def _sam_config(encoder_width: int) -> dict:
    return {
        "hidden_size": _SAM_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "global_attn_indexes": [1],
        "window_size": 4,
        "mlp_dim": 2 * _SAM_WIDTH,
        "output_channels": _SAM_WIDTH,
        "downsample_channels": [_SAM_WIDTH, encoder_width],
        "image_size": _BASE_SIZE,
        "patch_size": PATCH_SIZE,
        "initializer_range": 0.02,
    }


def _tiny_config(version: str, vocabulary: int, width: int, layers: int):
    text, sam = text_config(vocabulary, width, layers), _sam_config(width)
    encoder: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    if version == "v2":
        encoder |= {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
        vision = {"sam_config": sam, "encoder_config": encoder}
        return DeepseekOcr2Config(text_config=text, vision_config=vision, image_token_id=vocabulary - 1)
    if version not in ("v1", "unlimited"):
        raise ValueError(f"version={version!r} is not one of v1, v2, unlimited.")
    if version == "v1":
        text["layer_types"] = ["full_attention"] * layers
    encoder |= {"image_size": _GRID * PATCH_SIZE, "patch_size": PATCH_SIZE}
    vision = {"sam_config": sam, "encoder_config": encoder}
    return UnlimitedOcrConfig(text_config=text, vision_config=vision, image_token_id=vocabulary - 1)


@torch.no_grad()
def initialize(model: PreTrainedModel, seed: int) -> None:
    """Scale the weights by their fan-in, and keep the position tables small.

    SAM's own initialisation (std 1e-10) makes denormals, which slow a CPU down, and its position tables outweigh the
    image.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            if name.endswith(("view_separator", "image_newline", "class_embedding")):
                parameter.normal_(std=0.1, generator=generator)
        elif "rel_pos" in name:
            parameter.zero_()
        elif "pos_embed" in name or "position_embedding" in name or name.startswith("lm_head"):
            parameter.normal_(std=0.02, generator=generator)
        elif "embed_tokens" in name or "query_" in name:
            parameter.normal_(std=0.5, generator=generator)
        else:
            fan_in = parameter[0].numel() if parameter.ndim != 3 else parameter.shape[-1]
            parameter.normal_(std=1 / math.sqrt(fan_in), generator=generator)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            module.bias.zero_()


def build_initialized(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """The native model of a config with `initialize`d weights (fp32), which generates with the tokenizer's control tokens."""
    model = find_model_class(config.model_type)(config)
    initialize(model, seed)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def build_tiny_model(
    version: str = "v1",
    *,
    image_mode: str = "gundam",
    width: int = 64,
    layers: int = 3,
    seed: int = 0,
) -> tuple[PreTrainedModel, OcrProcessor]:
    """A random model of a few hundred thousand parameters and its processor.

    Args:
        version: `"v1"`, `"v2"` or `"unlimited"`.
        image_mode: A mode of that version, at 1/16 of its sizes (global view 64, tiles 40 or 48 pixels).
        width: Hidden size of the language model and the second vision encoder; a multiple of 64.
        layers: Decoder layers, the first one dense.
        seed: Seed of the weights.

    Returns:
        The model (fp32, evaluation mode) and the processor.

    Example:
        >>> model, processor = build_tiny_model("v1")  # doctest: +SKIP
    """
    tokenizer = build_byte_tokenizer()
    config = _tiny_config(version, len(tokenizer), width, layers)
    model = build_initialized(config, tokenizer, seed)
    processor = OcrProcessor(tokenizer, version, image_mode, size_divisor=SIZE_DIVISOR, patch_size=PATCH_SIZE)
    return model.eval(), processor


def build_byte_tokenizer(letters: str = LETTERS["russian"]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with upstream's control tokens at ids 0, 1, 2 and `<image>` as the last id.

    It has one token per byte, so any text survives a round trip, and one for each of the letters of several bytes.
    """
    splitter = ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {token: index for index, token in enumerate((BOS, EOS, PAD, *sorted(ByteLevel.alphabet())))}
    merges: list[tuple[str, str]] = []
    for letter in letters:
        merged, *others = list(splitter.pre_tokenize_str(letter)[0][0])
        for other in others:
            pair, merged = (merged, other), merged + other
            if merged not in vocabulary:
                merges.append(pair)
                vocabulary[merged] = len(vocabulary)
    backend = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (BOS, EOS, PAD, IMAGE_TOKEN)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=PAD)
