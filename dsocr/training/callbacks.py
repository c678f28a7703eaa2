"""Trainer callbacks: progress and log lines, Ctrl-C and SIGTERM, epochs, and moving the vision tower."""

import logging
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import ProgressCallback, TrainerCallback

from dsocr.common.errors import INTERRUPTED
from dsocr.common.machine import process_rank
from dsocr.report.pages import write_run_report
from dsocr.samples.collator import OcrCollator


logger = logging.getLogger(__name__)

FIRST_STEPS = 5
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class OcrProgressCallback(ProgressCallback):
    """Show the loss in the progress bar."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)


class LogLineCallback(TrainerCallback):
    """Log one line per logging step and per evaluation, with or without a progress bar."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        step = f"step {state.global_step}/{state.max_steps}"
        if "loss" in logs:
            logger.info("%s: %s", step, format_step(logs))
        elif "eval_cer" in logs and "eval_loss" in logs:
            rates = (logs["eval_cer"], logs["eval_wer"], logs["eval_loss"])
            logger.info("%s: evaluation: CER %.4f, WER %.4f, loss %.4f", step, *rates)


def format_step(logs: dict[str, float]) -> str:
    """Describe one logging step: loss, learning rate, samples and tokens per second, padding, peak memory."""
    parts = [f"loss {logs['loss']:.4f}", f"lr {logs['learning_rate']:.2e}"]
    if "samples_per_second" in logs:
        parts += [
            f"{logs['samples_per_second']:.2f} samples/s",
            f"{logs['image_tokens_per_second']:.0f} image + {logs['text_tokens_per_second']:.0f} text tokens/s",
            f"padding {logs['padding_share']:.0%}",
        ]
    parts.append(f"peak {logs['peak_memory_gib']:.2f} GiB")
    return ", ".join(parts)


class FirstStepsCallback(TrainerCallback):
    """Log the first steps one by one, most broken runs show there; and count the peak memory from the first step on."""

    def on_train_begin(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            # Loading, the cache and the first reading may have needed more than training does.
            torch.cuda.reset_peak_memory_stats()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step <= FIRST_STEPS:
            control.should_log = True
        return control


class EpochCallback(TrainerCallback):
    """Tell the collator the epoch before the epoch's workers start.

    Args:
        collator: The training collator.
    """

    def __init__(self, collator: OcrCollator):
        self._collator = collator

    def on_epoch_begin(self, args, state, control, **kwargs):
        # After resuming, the epoch may be fractional; otherwise it is a whole number.
        self._collator.epoch = int((state.epoch or 0) + 1e-6)


class InterruptCallback(TrainerCallback):
    """On Ctrl-C or SIGTERM finish the step, save a checkpoint and stop; on a second signal stop at once.

    Schedulers such as SLURM send SIGTERM some time before they end a job.

    Attributes:
        interrupted: Whether a signal came.
    """

    def __init__(self):
        self.interrupted = False
        self._previous: dict[signal.Signals, Any] = {}

    def _handle(self, signum, frame):
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        name = "Ctrl-C" if signum == signal.SIGINT else "SIGTERM"
        logger.warning("%s: saving a checkpoint after this step; a second one stops at once", name)

    def on_train_begin(self, args, state, control, **kwargs):
        self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}

    def on_step_end(self, args, state, control, **kwargs):
        if process_rank()[1] > 1:
            # All processes must agree: otherwise some would wait for ever for the one saving.
            flag = torch.tensor(int(self.interrupted), device=args.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            self.interrupted = bool(flag)
        if self.interrupted:
            control.should_save = True
            control.should_evaluate = False
            control.should_training_stop = True
        return control

    def on_train_end(self, args, state, control, **kwargs):
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def end_if_interrupted(interrupt: InterruptCallback, output_dir: str | Path, *, is_main: bool) -> None:
    """After Ctrl-C or SIGTERM write the report of the stopped run, log how to resume, and end the process.

    Raises:
        SystemExit: with code 130, when the run was interrupted.
    """
    if not interrupt.interrupted:
        return
    if is_main:
        write_run_report(output_dir)
    logger.warning("stopped; the same command with --resume_from_checkpoint goes on from the saved step")
    raise SystemExit(INTERRUPTED)


class TowerOffDeviceCallback(TrainerCallback):
    """Keep the vision tower on the CPU during training, while the cache has the features of every image.

    Args:
        tower: The tower; Trainer has put it on the device together with the model.
    """

    def __init__(self, tower: nn.Module):
        self._tower = tower
        self._device: torch.device | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._device = next(self._tower.parameters()).device
        self._tower.to("cpu")
        torch.cuda.empty_cache()

    def on_train_end(self, args, state, control, **kwargs):
        self._tower.to(self._device)
