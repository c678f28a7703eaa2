"""The shape of the built-in base: DeepSeek-OCR's v1 architecture, small, over a tokenizer with a token for every letter.

Sizes are upstream's divided by 8 with 8-pixel patches: global view 128 pixels, tiles 80, a line as up to nine tiles in a
row. Each tile becomes 3 x 3 image tokens, so a whole line has 27 columns of them.
"""

import math
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerFast, UnlimitedOcrConfig

from dsocr.data.synthetic import LETTERS
from dsocr.lab.tiny import build_byte_tokenizer, build_initialized, text_config
from dsocr.samples.processor import OcrProcessor


SIZE_DIVISOR = 8
PATCH_SIZE = 8
BASE_SIZE = 1024 // SIZE_DIVISOR
TILE_SIZE = 640 // SIZE_DIVISOR
# Image token rows and columns of a tile: 10 patches, halved twice by convolutions, rounded up.
TILE_TOKENS = math.ceil(TILE_SIZE // PATCH_SIZE / 4)
LATIN_ACCENTS = "ÀÂÄÆÇÈÉÊËÎÏÔÖŒÙÛÜàâäæçèéêëîïôöœùûüÿñß"
SIGNS = "°«»£§½·–—‘’“”„…№€"


@dataclass(frozen=True)
class BaseShape:
    """Sizes of the base.

    Attributes:
        width: Hidden size of the language model and the second vision encoder; a multiple of 64, bitsandbytes' block.
        sam_width: Hidden size of SAM, the first and costliest vision encoder.
        sam_layers: Its layers; the last one attends to the whole view, the others to windows of 5 x 5 patches, which
            divide a tile exactly.
        encoder_layers: Layers of the second vision encoder.
        layers: Decoder layers, the first one dense.
    """

    width: int = 256
    sam_width: int = 96
    sam_layers: int = 3
    encoder_layers: int = 2
    layers: int = 3


def build_letter_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with one token for each letter of English, French, German and Russian and each usual sign.

    Control tokens have upstream's ids 0, 1, 2, `<image>` is the last id. Letters beyond those become their bytes, so any
    text survives a round trip.
    """
    return build_byte_tokenizer(LETTERS["russian"] + LATIN_ACCENTS + SIGNS)


def _config(shape: BaseShape, vocabulary: int) -> UnlimitedOcrConfig:
    width, sam_width = shape.width, shape.sam_width
    text = text_config(vocabulary, width, shape.layers) | {"layer_types": ["full_attention"] * shape.layers}
    sam = {
        "hidden_size": sam_width,
        "num_hidden_layers": shape.sam_layers,
        "num_attention_heads": 2,
        "global_attn_indexes": [shape.sam_layers - 1],
        "window_size": 5,
        "mlp_dim": 2 * sam_width,
        "output_channels": sam_width,
        "downsample_channels": [sam_width, width],
        "image_size": BASE_SIZE,
        "patch_size": PATCH_SIZE,
        "initializer_range": 0.02,
    }
    encoder = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": shape.encoder_layers,
        "num_attention_heads": 4,
        "image_size": BASE_SIZE // 4,
        "patch_size": PATCH_SIZE,
    }
    vision = {"sam_config": sam, "encoder_config": encoder}
    return UnlimitedOcrConfig(text_config=text, vision_config=vision, image_token_id=vocabulary - 1)


def build_base_model(shape: BaseShape, seed: int = 0) -> tuple[PreTrainedModel, OcrProcessor]:
    """The base with random weights (fp32) and its processor.

    Example:
        >>> model, processor = build_base_model(BaseShape())  # doctest: +SKIP
        >>> processor.geometry.choose_grid(720, 80)  # doctest: +SKIP
        (9, 1)
    """
    tokenizer = build_letter_tokenizer()
    model = build_initialized(_config(shape, len(tokenizer)), tokenizer, seed)
    return model, OcrProcessor(tokenizer, "v1", "gundam", size_divisor=SIZE_DIVISOR, patch_size=PATCH_SIZE)
