"""One run per output folder: a lock that ends with its process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from dsocr.common.run_files import LOCK_NAME


@contextmanager
def hold_folder(folder: str | Path, *, is_main: bool = True) -> Iterator[None]:
    """Keep other runs out of an output folder; the operating system drops the lock when the process ends, however it ends.

    Args:
        folder: The folder; it is created.
        is_main: Only rank 0 takes the lock; the other processes of a run pass.

    Raises:
        ValueError: when another run is writing into the folder.
    """
    if not is_main:
        yield
        return
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path / LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise ValueError(
            f"--output_dir {folder}: another run is writing into this folder. Wait for it, or name another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()
