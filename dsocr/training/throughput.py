"""Measure samples and tokens per second, padding and peak memory between two log lines."""

import time

import torch

from dsocr.common.machine import peak_memory_gib


class ThroughputMeter:
    """Count samples and tokens of training steps. Counts stay on the device until logged, so no step waits for them.

    Args:
        image_token_id: Id of an image token.
    """

    def __init__(self, image_token_id: int):
        self._image_token_id = image_token_id
        self.restart(0)

    def restart(self, step: int) -> None:
        """Reset all counts, and count from this optimizer step on."""
        self._first_step = step
        self._since = time.perf_counter()
        self._samples = self._positions = 0
        self._image_tokens: torch.Tensor | int = 0
        self._text_tokens: torch.Tensor | int = 0
        self._not_finite: torch.Tensor | int = 0

    def count_batch(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        """Count one micro-batch `[batch, length]`; call it before the training step."""
        if not self._samples:
            # Start the clock at the first batch: the time between log line and batch is no training.
            self._since = time.perf_counter()
        image_tokens = (input_ids == self._image_token_id).sum()
        self._samples += input_ids.shape[0]
        self._positions += input_ids.numel()
        self._image_tokens = self._image_tokens + image_tokens
        self._text_tokens = self._text_tokens + attention_mask.sum() - image_tokens

    def count_loss(self, loss: torch.Tensor) -> None:
        """Record whether the loss of a micro-batch is finite."""
        self._not_finite = self._not_finite + (~torch.isfinite(loss)).int()

    @property
    def is_finite(self) -> bool:
        """Whether every loss since the last restart was finite."""
        return not int(self._not_finite)

    def measure(self, step: int, processes: int) -> dict[str, float]:
        """Compute the figures for the log since the last restart.

        Args:
            step: Optimizer step just finished.
            processes: Number of processes; each counts its own share.
        """
        seconds = time.perf_counter() - self._since
        counts = {
            "samples": self._samples,
            "image_tokens": int(self._image_tokens),
            "text_tokens": int(self._text_tokens),
        }
        used = counts["image_tokens"] + counts["text_tokens"]
        return {
            **{f"{name}_per_second": count * processes / seconds for name, count in counts.items()},
            "padding_share": 1 - used / max(1, self._positions),
            "seconds_per_step": seconds / max(1, step - self._first_step),
            "peak_memory_gib": peak_memory_gib(),
        }
