"""Compute SAM's global attention without holding its whole relative-position bias.

The bias of one 1024-pixel view is `[heads, 4096, 4096]`: 0.4 GB in 16 bit, in each of four layers, for every image of a
batch. The native code builds all of it; this module builds it for a few rows of queries at a time, with the same
numbers bit for bit. (SAM's windowed layers have small biases and stay unchanged.)
"""

from functools import partial

import torch
from torch import nn
from torch.nn import functional


# Largest piece of the bias in bytes.
PIECE_BYTES = 128 * 2**20


def _forward(attention: nn.Module, hidden_states: torch.Tensor, output_attentions: bool = False):
    """`SamVisionSdpaAttention.forward` of both native models, `[images, height, width, channels]`."""
    images, height, width, _ = hidden_states.shape
    heads = attention.num_attention_heads
    qkv = attention.qkv(hidden_states).reshape(images, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)
    rel_pos_h = attention.get_rel_pos(height, height, attention.rel_pos_h)
    rel_pos_w = attention.get_rel_pos(width, width, attention.rel_pos_w)
    row_bytes = images * heads * width * height * width * query.element_size()
    rows = max(1, min(height, PIECE_BYTES // row_bytes))
    pieces = []
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        some = query[:, :, start * width : stop * width]
        by_row = some.reshape(images * heads, stop - start, width, -1)
        rel_h = torch.einsum("bhwc,hkc->bhwk", by_row, rel_pos_h[start:stop])
        rel_w = torch.einsum("bhwc,wkc->bhwk", by_row, rel_pos_w)
        bias = (rel_h[..., :, None] + rel_w[..., None, :]).reshape(images, heads, (stop - start) * width, -1)
        pieces.append(functional.scaled_dot_product_attention(some, key, value, attn_mask=bias))
    output = torch.cat(pieces, dim=2).transpose(1, 2).reshape(images, height, width, -1)
    return attention.proj(output), None


def split_global_attention(model: nn.Module) -> int:
    """Make the global layers of a native model's SAM build their bias piece by piece; a second call changes nothing.

    Args:
        model: A bare native model. Nothing changes under `attn_implementation="eager"`.

    Returns:
        The number of layers.
    """
    count = 0
    for layer in model.model.vision_tower.sam_encoder.layers:
        attention = layer.attn
        is_sdpa = "Sdpa" in type(attention).__name__
        if layer.window_size == 0 and is_sdpa and attention.use_rel_pos:
            if not isinstance(attention.forward, partial):
                attention.forward = partial(_forward, attention)
            count += 1
    return count
