"""Loading a checkpoint against reading its files."""

import statistics
import time
from pathlib import Path

import numpy as np

from dsocr.models import load_model


def measure_loading(folder: str | Path, *, dtype: str = "auto", repeats: int = 3) -> dict[str, float]:
    """Seconds of `load_model` and of reading the same bytes into memory, in turn, after one round that fills the page cache.

    Args:
        folder: A checkpoint.
        dtype: See `load_model`.
        repeats: Timed rounds.

    Returns:
        `load_seconds`, `read_seconds` (medians), `ratio` (median over the rounds), `gigabytes`.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    loads, reads = [], []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        contents = [np.fromfile(path, dtype=np.uint8) for path in files]
        reads.append(time.perf_counter() - start)
        del contents
        start = time.perf_counter()
        model = load_model(str(folder), dtype=dtype)
        # Mapped weights are read when they are first touched.
        for parameter in model.parameters():
            parameter.data.view(-1)[::1024].sum()
        loads.append(time.perf_counter() - start)
        del model
    return {
        "load_seconds": statistics.median(loads[1:]),
        "read_seconds": statistics.median(reads[1:]),
        "ratio": statistics.median(load / read for load, read in zip(loads[1:], reads[1:], strict=True)),
        "gigabytes": sum(path.stat().st_size for path in files) / 1e9,
    }
