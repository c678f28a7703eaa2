"""Turn a failure into advice: the cause, and the flag to change."""

import contextlib
import errno
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError

from dsocr.common.problems import check_problem


logger = logging.getLogger(__name__)

INTERRUPTED = 130
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


class PreflightError(RuntimeError):
    """A preflight check failed; the message lists every failed check."""


class UnusableSampleError(ValueError):
    """A sample cannot be used.

    Attributes:
        reason: Its name in `dsocr.common.problems.PROBLEMS`, for counting.
    """

    # A DataLoader rebuilds a worker's error from its message alone: the message comes first and must suffice.
    def __init__(self, message: str, reason: str):
        check_problem(reason)
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):
        return type(self), (str(self), self.reason)


class TrainingDivergedError(RuntimeError):
    """The loss became NaN or infinite."""


def _is_full_or_closed(error: BaseException) -> bool:
    # safetensors wraps the system's message for a full disk in its own exception type.
    if isinstance(error, SafetensorError):
        return "No space left" in str(error)
    # torch.save reports a failed write with a position in its own file.
    if isinstance(error, RuntimeError) and ("inline_container" in str(error) or "PytorchStreamWriter" in str(error)):
        return True
    return isinstance(error, OSError) and error.errno in _NOT_WRITABLE


def _raised_in_dsocr(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("dsocr.")


def explain(error: BaseException, memory_advice: Callable[[], str] | None = None) -> str | None:
    """Translate an error into a message for people; `None` when only the trace can explain it.

    Args:
        error: The error that ended the run.
        memory_advice: Returns the advice for an out-of-memory error; called only then.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return f"out of memory. {memory_advice() if memory_advice else 'Try a smaller --per_device_eval_batch_size, or --load_in_4bit.'}"
    if _is_full_or_closed(error):
        return f"cannot write: {error}. Free some space, or name another output folder."
    if isinstance(error, PreflightError | TrainingDivergedError | FileNotFoundError | ModuleNotFoundError):
        return str(error)
    # Our own checks raise ValueError with a readable message. A DataLoader worker passes on the type, not the frames.
    if isinstance(error, ValueError) and (_raised_in_dsocr(error) or type(error).__module__.startswith("dsocr.")):
        return str(error)
    return None


@contextlib.contextmanager
def blamed_on(path: str | Path) -> Iterator[None]:
    """Name a file or folder in whatever a library raises over its content.

    Libraries take odd values in configuration files for granted and fail on them with any type of error, far from the
    file. Errors that `explain` knows pass untouched.

    Raises:
        ValueError: naming the path, in place of the library's error.
    """
    try:
        yield
    # A missing library is not the file's fault.
    except ImportError:
        raise
    except Exception as error:
        if explain(error) is not None:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        raise ValueError(
            f"{path} cannot be loaded: it is damaged, its values do not fit each other, or a library fails on it ({reason})."
        ) from error


@contextlib.contextmanager
def explained(memory_advice: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn an error that `explain` knows into one clear message and an exit code; any other error passes untouched.

    Args:
        memory_advice: Returns the advice for an out-of-memory error.

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
