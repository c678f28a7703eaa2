"""The shapes of the released checkpoints, so that memory can be planned and speed measured without a download."""

from transformers import PreTrainedConfig, UnlimitedOcrConfig

from dsocr.models.config import native_config


# The language model of both versions, as upstream's config.json has it (deepseek-ai/DeepSeek-OCR, DeepSeek-OCR-2).
_TEXT = {
    "vocab_size": 129280,
    "hidden_size": 1280,
    "intermediate_size": 6848,
    "moe_intermediate_size": 896,
    "num_hidden_layers": 12,
    "num_attention_heads": 10,
    "num_key_value_heads": 10,
    "n_shared_experts": 2,
    "n_routed_experts": 64,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 8192,
    "use_mla": False,
}
_SAM = {
    "width": 768,
    "layers": 12,
    "heads": 12,
    "global_attn_indexes": [2, 5, 8, 11],
    "downsample_channels": [512, 1024],
}
_WIDTHS = {
    "v1": {
        "sam_vit_b": _SAM,
        "clip-l-14-224": {"width": 1024, "layers": 24, "heads": 16, "image_size": 224, "patch_size": 14},
    },
    "v2": {"sam_vit_b": _SAM, "qwen2-0-5b": {"dim": 896}},
}
_ARCHITECTURES = {"v1": "DeepseekOCRForCausalLM", "v2": "DeepseekOCR2ForCausalLM"}
# Hub ids -> version.
RELEASED = {
    "deepseek-ai/DeepSeek-OCR": "v1",
    "deepseek-ai/DeepSeek-OCR-2": "v2",
    "deepseek-community/DeepSeek-OCR-2": "v2",
    "baidu/Unlimited-OCR": "unlimited",
}


def released_config(version: str) -> PreTrainedConfig:
    """The native config of a released checkpoint.

    Args:
        version: `"v1"`, `"v2"` or `"unlimited"` (v1's shapes with a sliding reference window).

    Raises:
        ValueError: for another version.
    """
    if version not in ("v1", "v2", "unlimited"):
        raise ValueError(f"version={version!r} is not one of v1, v2, unlimited.")
    shape = "v2" if version == "v2" else "v1"
    raw = {
        "model_type": "deepseek_vl_v2",
        "architectures": [_ARCHITECTURES[shape]],
        "vision_config": {"image_size": 1024, "width": _WIDTHS[shape]},
        **_TEXT,
    }
    config = native_config(raw)
    if version == "unlimited":
        config.text_config.layer_types = UnlimitedOcrConfig().text_config.layer_types
    return config
