"""The vocabulary is projected for answer tokens alone, on devices where TRL projects every position.

TRL 1.16's fused head scores only the labelled positions where it has Triton; elsewhere it scores all of them, prompt,
image tokens and padding included, and throws most away (`trl.trainer.utils.add_fused_lm_head`, "every position is scored
instead"). Here the backbone's output is gathered before the head sees it, and the labels come already shifted, which
that head takes as `shift_labels`. On Triton devices nothing is changed.
"""

from typing import Any

import torch
from torch import nn
from trl.trainer.utils import _use_triton

from dsocr.samples.collator import IGNORED


class CompactHead:
    """Gathers the positions that predict a labelled token, between backbone and head.

    Args:
        model: A bare native model.

    Attributes:
        scored: Positions that went through the head in the last call; `None` when none was compacted.
    """

    def __init__(self, model: nn.Module):
        self._mask: torch.Tensor | None = None
        self.scored: int | None = None
        # The module that TRL's head calls: `model.base_model`.
        model.base_model.register_forward_hook(self._gather)

    def compact(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs of a training forward, with `shift_labels` `[1, labelled]` in the place of `labels`."""
        labels = inputs.get("labels")
        if labels is None or _use_triton(labels.device):
            return inputs
        shifted = labels[:, 1:]
        mask = shifted != IGNORED
        self._mask = mask
        rest = {name: value for name, value in inputs.items() if name != "labels"}
        return rest | {"shift_labels": shifted[mask].unsqueeze(0)}

    def _gather(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if self._mask is None:
            return output
        mask, self._mask = self._mask, None
        output.last_hidden_state = output.last_hidden_state[:, :-1][mask].unsqueeze(0)
        self.scored = output.last_hidden_state.shape[1]
        return output
