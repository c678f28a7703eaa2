"""Log a run to the console, without tearing progress bars, and to a file in the run folder."""

import contextlib
import logging
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import datasets
import transformers
from tqdm.auto import tqdm

from dsocr.common.run_files import LOG_NAME


_LIBRARIES = ("dsocr", "recipes", "transformers", "trl", "peft", "accelerate", "datasets", "py.warnings")


class _BarSafeHandler(logging.Handler):
    """Write above a running progress bar instead of through it."""

    def __init__(self, level: int, stream: TextIO | None):
        super().__init__(level)
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        # A console that is closed or full (`| head`) must not end a training run.
        with contextlib.suppress(OSError, ValueError):
            tqdm.write(self.format(record), file=self._stream)


def setup_logging(output_dir: str | Path | None, *, is_main: bool, stream: TextIO | None = None) -> logging.Logger:
    """Log the project at INFO (the file at DEBUG, with the trace of a failure), the libraries at WARNING; rank 0 alone.

    Args:
        output_dir: Run folder; logs are appended to its `run.log`. `None` logs to the console alone.
        is_main: Whether this process is rank 0. The others log errors only.
        stream: The console; standard output by default. A recipe that prints its result logs to standard error.

    Returns:
        The recipes' logger.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    console = _BarSafeHandler(logging.INFO, stream)
    console.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    root.addHandler(console)
    if is_main and output_dir is not None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(Path(output_dir) / LOG_NAME, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(file)
    logging.captureWarnings(True)
    for library in (transformers.utils.logging, datasets.utils.logging):
        library.disable_default_handler() if hasattr(library, "disable_default_handler") else None
        library.enable_propagation()
    # huggingface_hub's own handler would print every warning a second time.
    logging.getLogger("huggingface_hub").handlers.clear()
    for name in _LIBRARIES:
        level = logging.DEBUG if name in ("dsocr", "recipes") else logging.WARNING
        logging.getLogger(name).setLevel(level if is_main else logging.ERROR)
    # Deprecation warnings of libraries are for their developers: hide them, and show every other warning once.
    warnings.simplefilter("once")
    for category in (FutureWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)
    return logging.getLogger("recipes")


class Stages:
    """Log the stages of a run and number them: `Step 2: LoRA ...` and `Step 2: LoRA ... done (1.3 s)`.

    Args:
        logger: Receives the messages.
    """

    def __init__(self, logger: logging.Logger):
        self._logger, self._number = logger, 0

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._number += 1
        label = f"Step {self._number}: {name}"
        self._logger.info("%s ...", label)
        start = time.perf_counter()
        yield
        self._logger.info("%s ... done (%.1f s)", label, time.perf_counter() - start)
