"""Compute logits for answer tokens only, on devices where TRL computes them for every position.

With Triton, TRL 1.16's fused head scores only the labelled positions. Without it the head scores all of them, prompt,
image tokens and padding included, and throws most away (`trl.trainer.utils.add_fused_lm_head`, "every position is
scored instead"). This module gathers the backbone's output before the head, and passes already shifted labels, which
the head takes as `shift_labels`. On Triton devices nothing changes, unless Triton does not work there.
"""

import logging
from typing import Any

import torch
from torch import nn
from trl.kernels import chunked_logprob

from dsocr.samples.collator import IGNORED


logger = logging.getLogger(__name__)


def try_triton(device: torch.device) -> bool:
    """Try TRL's fused head on the device, and switch its Triton kernels off, with a warning, when they do not work.

    Triton compiles its kernels at their first call, with a C compiler and Python's headers, which many machines lack: the
    run would end at its first step.

    Returns:
        Whether TRL's head will use Triton.
    """
    if not chunked_logprob._use_triton(device):
        return False
    try:
        rows = torch.zeros(4, 16, device=device, dtype=torch.float32, requires_grad=True)
        labels = torch.zeros(4, device=device, dtype=torch.long)
        found = chunked_logprob.ChunkedLogProbFunction.apply(
            rows, torch.zeros(32, 16, device=device), None, labels, 1.0, 16, None, 1.0, ("log_probs",)
        )
        found[0].sum().backward()
    # Whatever the compiler's absence looks like: CalledProcessError, FileNotFoundError, RuntimeError, ImportError.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        logger.warning(
            "Triton does not work here (%s): the loss is computed without it. It needs a C compiler and Python's headers "
            "(Debian, Ubuntu: apt install gcc python3-dev).",
            reason,
        )
        chunked_logprob._TRITON_AVAILABLE = False
        return False
    return True


class CompactHead:
    """Gather, between backbone and head, the positions that predict a labelled token.

    Args:
        model: A bare native model.
    """

    def __init__(self, model: nn.Module):
        self._mask: torch.Tensor | None = None
        # Hook the module that TRL's head calls: `model.base_model`.
        model.base_model.register_forward_hook(self._gather)

    def compact(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Replace `labels` in the inputs of a training forward by `shift_labels` `[1, labelled]`."""
        labels = inputs.get("labels")
        if labels is None or chunked_logprob._use_triton(labels.device):
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
        return output
