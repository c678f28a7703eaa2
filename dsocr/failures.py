"""From a failure to advice: what went wrong, and which flag to change."""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator

import torch

from dsocr.data.bad_samples import BadSampleError
from dsocr.preflight import PreflightError


logger = logging.getLogger(__name__)

INTERRUPTED = 130


class TrainingDivergedError(RuntimeError):
    """The loss is not a number any more."""


def memory_advice(*, batch_size: int, checkpointing: bool, image_mode: str, four_bit: bool) -> str:
    """What to change after running out of memory, the flag that frees most first.

    Args:
        batch_size: Training batch per device.
        checkpointing: Whether activation checkpointing is on.
        image_mode: The image mode.
        four_bit: Whether the base is quantised already.
    """
    advice = []
    if batch_size > 1:
        advice.append("--per_device_train_batch_size 1, with --gradient_accumulation_steps raised by the same factor")
    if not checkpointing:
        advice.append("--activation_checkpointing true")
    if image_mode not in ("tiny", "small"):
        smaller = "base" if image_mode in ("gundam", "large") else "small"
        advice.append(f"--image_mode {smaller} (fewer image tokens than {image_mode})")
    if not four_bit:
        advice.append("--load_in_4bit (quantises the linear layers)")
    advice.append("--lora_r 8")
    return "out of memory. In this order, try: " + "; ".join(advice) + "."


@contextlib.contextmanager
def explained(**memory_settings) -> Iterator[None]:
    """End a run in one clear message where a bare trace would help nobody; any other error passes untouched.

    Args:
        **memory_settings: The arguments of `memory_advice`.

    Raises:
        SystemExit: with code 1 after the message, or 130 after Ctrl-C.
    """
    # The processes of a GPU run may hold the interrupt already; a flag-less Ctrl-C (before training) ends at once.
    try:
        yield
    except KeyboardInterrupt:
        logger.error("interrupted")
        raise SystemExit(INTERRUPTED) from None
    except (torch.OutOfMemoryError, MemoryError):
        logger.debug("trace of the failure", exc_info=True)
        logger.error("%s", memory_advice(**memory_settings))
        raise SystemExit(1) from None
    except (BadSampleError, PreflightError, TrainingDivergedError, FileNotFoundError) as error:
        logger.debug("trace of the failure", exc_info=True)
        logger.error("%s", error)
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        logger.error("cannot write to %s: %s. Free some space or give another --output_dir.",
                     error.filename or "the output folder", os.strerror(error.errno))
        raise SystemExit(1) from None
    except ValueError as error:
        # Raised by this project's own checks with a message for people; the trace goes to the debug log.
        if type(error).__module__.startswith("dsocr") or _raised_in_dsocr(error):
            logger.debug("trace of the failure", exc_info=True)
            logger.error("%s", error)
            raise SystemExit(1) from None
        raise


def _raised_in_dsocr(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("dsocr.")
