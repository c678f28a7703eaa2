"""From a failure to advice: what went wrong, and which flag to change."""

import contextlib
import errno
import logging
from collections.abc import Callable, Iterator

import torch
from safetensors import SafetensorError


logger = logging.getLogger(__name__)

INTERRUPTED = 130
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


class PreflightError(RuntimeError):
    """The run is wired wrongly; the message lists every check that failed."""


class UnusableSampleError(ValueError):
    """One sample that cannot be used.

    Attributes:
        reason: A short word for counting: `missing`, `too_small`, `empty_text`, ...
    """

    # The message comes first and alone suffices: a data loader worker's error is built anew from it.
    def __init__(self, message: str, reason: str = "unusable"):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):
        return type(self), (str(self), self.reason)


class TrainingDivergedError(RuntimeError):
    """The loss is not a number any more."""


def _is_full_or_closed(error: BaseException) -> bool:
    # safetensors reports a full disk as an error of its own, with the system's message in it.
    if isinstance(error, SafetensorError):
        return "No space left" in str(error)
    return isinstance(error, OSError) and error.errno in _NOT_WRITABLE


def _raised_in_dsocr(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("dsocr.")


def explain(error: BaseException, memory_advice: Callable[[], str] | None = None) -> str | None:
    """A message for people, or `None` for an error that only its trace explains.

    Args:
        error: What ended the run.
        memory_advice: What to say after running out of memory; called only then.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return f"out of memory. {memory_advice() if memory_advice else 'Try a smaller --image_mode.'}"
    if _is_full_or_closed(error):
        return f"cannot write: {error}. Free some space, or give another --output_dir."
    if isinstance(error, PreflightError | TrainingDivergedError | FileNotFoundError | ModuleNotFoundError):
        return str(error)
    # This project's own checks raise ValueError with a message for people; in a worker process only its type is left.
    if isinstance(error, ValueError) and (_raised_in_dsocr(error) or type(error).__module__.startswith("dsocr.")):
        return str(error)
    return None


@contextlib.contextmanager
def explained(memory_advice: Callable[[], str] | None = None) -> Iterator[None]:
    """End a run in one clear message where a bare trace would help nobody; any other error passes untouched.

    Args:
        memory_advice: What to say after running out of memory.

    Raises:
        SystemExit: with code 1 after the message, or 130 after Ctrl-C outside training.
    """
    try:
        yield
    except KeyboardInterrupt:
        logger.error("interrupted")
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        message = explain(error, memory_advice)
        if message is None:
            raise
        logger.debug("the trace of what follows", exc_info=True)
        logger.error("%s", message)
        raise SystemExit(1) from None
