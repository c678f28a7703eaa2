"""From a failure to advice: what went wrong, and which flag to change."""

import contextlib
import errno
import logging
from collections.abc import Iterator

import torch
from safetensors import SafetensorError

from dsocr.preflight import PreflightError


logger = logging.getLogger(__name__)

INTERRUPTED = 130


class TrainingDivergedError(RuntimeError):
    """The loss is not a number any more."""


def memory_advice(*, batch_size: int, checkpointing: bool, image_mode: str) -> str:
    """What to change after running out of memory, the flag that frees most first.

    Args:
        batch_size: Training batch per device.
        checkpointing: Whether activation checkpointing is on.
        image_mode: The image mode.
    """
    advice = []
    if batch_size > 1:
        advice.append("--per_device_train_batch_size 1, with --gradient_accumulation_steps raised by the same factor")
    if not checkpointing:
        advice.append("--activation_checkpointing true")
    if image_mode not in ("tiny", "small"):
        smaller = "base" if image_mode in ("gundam", "large") else "small"
        advice.append(f"--image_mode {smaller} (fewer image tokens than {image_mode})")
    advice.append("--lora_r 8")
    return "out of memory. In this order, try: " + "; ".join(advice) + "."


def _is_full_or_closed(error: BaseException) -> bool:
    # safetensors reports a full disk as an error of its own, with the system's message in it.
    if isinstance(error, SafetensorError):
        return "No space left" in str(error)
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


def _raised_in_dsocr(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("dsocr.")


def explain(error: BaseException, **memory_settings) -> str | None:
    """A message for people, or `None` for an error that only its trace explains.

    Args:
        error: What ended the run.
        **memory_settings: The arguments of `memory_advice`.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return memory_advice(**memory_settings)
    if _is_full_or_closed(error):
        return f"cannot write: {error}. Free some space, or give another --output_dir."
    if isinstance(error, PreflightError | TrainingDivergedError | FileNotFoundError):
        return str(error)
    # This project's own checks raise ValueError with a message for people; in a worker process only its type is left.
    if isinstance(error, ValueError) and (_raised_in_dsocr(error) or type(error).__module__.startswith("dsocr.")):
        return str(error)
    return None


@contextlib.contextmanager
def explained(**memory_settings) -> Iterator[None]:
    """End a run in one clear message where a bare trace would help nobody; any other error passes untouched.

    Args:
        **memory_settings: The arguments of `memory_advice`.

    Raises:
        SystemExit: with code 1 after the message, or 130 after Ctrl-C outside training.
    """
    try:
        yield
    except KeyboardInterrupt:
        logger.error("interrupted")
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        message = explain(error, **memory_settings)
        if message is None:
            raise
        logger.debug("the trace of what follows", exc_info=True)
        logger.error("%s", message)
        raise SystemExit(1) from None
