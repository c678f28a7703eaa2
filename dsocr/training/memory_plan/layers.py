"""Plan a deep model by shallow ones: memory grows by the same amount with every further layer of the language model.

A fake step takes seconds, nearly all of them Python's, and as many more as there are layers.
"""

from copy import deepcopy

from transformers import PreTrainedConfig


# Sparse layers of the language model, and layers of the vision encoder: two, so that each has a neighbour.
SHALLOW = 2


def make_shallow(config: PreTrainedConfig, sparse: int) -> PreTrainedConfig:
    """A copy of a config with few layers: all dense ones and `sparse` others in the language model, one layer of each kind
    of attention in SAM, two in the encoder."""
    changed = deepcopy(config)
    text, sam, encoder = changed.text_config, changed.vision_config.sam_config, changed.vision_config.encoder_config
    dense = text.mlp_layer_types.count("dense")
    text.num_hidden_layers = dense + sparse
    text.mlp_layer_types = ["dense"] * dense + ["sparse"] * sparse
    encoder.num_hidden_layers = min(encoder.num_hidden_layers, SHALLOW)
    for part in (text, encoder):
        if getattr(part, "layer_types", None):
            part.layer_types = (part.layer_types * part.num_hidden_layers)[: part.num_hidden_layers]
    windows = sam.num_hidden_layers > len(sam.global_attn_indexes)
    sam.num_hidden_layers = windows + bool(sam.global_attn_indexes)
    sam.global_attn_indexes = [int(windows)] if sam.global_attn_indexes else []
    return changed


def count_sparse(config: PreTrainedConfig) -> int:
    """Mixture-of-experts layers of the language model."""
    return config.text_config.mlp_layer_types.count("sparse")
