"""The command lines of the measuring recipes: benchmark.py, measure_memory.py and gpu_check.py."""

from dataclasses import dataclass

from dsocr.cli.parser import flag
from dsocr.lab.gpu_check.setup import STEP_NAMES
from dsocr.lab.random_models import SIZES


PARTS = ("training", "reading", "growth", "loading", "cutting", "experts")
_VERSION_HELP = "Architecture: DeepSeek-OCR (v1) or DeepSeek-OCR-2 (v2). Default: v1."


@dataclass
class BenchmarkArguments:
    """Arguments of recipes/benchmark.py."""

    size: str = flag(
        "tiny",
        "tiny: this project's tiny model; mid: the released widths in four layers; full: as released. Default: tiny.",
        choices=list(SIZES),
    )
    version: str = flag("v1", _VERSION_HELP, choices=["v1", "v2"])
    parts: list[str] = flag(
        ["training", "reading"],
        "What to measure. training: a step by part and by lever, and the data loader; reading: generation; growth: steps "
        "of growing batches, tiles and answers; loading: a checkpoint that is written first (full size: 7 GB); cutting: a line's "
        "pixels; experts: one layer of them, of the released shape. "
        "Default: training reading.",
        choices=list(PARTS),
    )
    repeats: int = flag(5, "Timed rounds, after one that is not timed. Default: 5.")
    output_dir: str = flag(
        "outputs/benchmark", "Folder of log, checkpoint and speed_<device>.json. Default: outputs/benchmark."
    )
    docs: str | None = flag(
        None, "Write speed_<device>.json there instead and fill the tables of its speed.md.", metavar="FOLDER"
    )


@dataclass
class MemoryArguments:
    """Arguments of recipes/measure_memory.py."""

    size: str = flag(
        "full", "full: as released (7 GB on disk); tiny: a trial of a minute. Default: full.", choices=["tiny", "full"]
    )
    version: str = flag("v1", _VERSION_HELP, choices=["v1", "v2"])
    card_gib: float | None = flag(
        None, "On a GPU: allow no more memory than a card of so many GiB has. Default: all.", metavar="GIB"
    )
    output_dir: str = flag(
        "outputs/memory", "Folder of log, random weights and memory_<device>.json. Default: outputs/memory."
    )
    docs: str | None = flag(
        None, "Write memory_<device>.json there instead and fill the tables of its memory.md.", metavar="FOLDER"
    )


@dataclass
class GpuCheckArguments:
    """Arguments of recipes/gpu_check.py."""

    size: str = flag(
        "full",
        "full: the released shapes, on a GPU; tiny: a trial of every step on any machine. Default: full.",
        choices=["tiny", "full"],
    )
    version: str = flag("v1", _VERSION_HELP, choices=["v1", "v2"])
    steps: list[str] = flag(
        list(STEP_NAMES), f"Some of {', '.join(STEP_NAMES)}. Default: all.", choices=list(STEP_NAMES), metavar="STEP"
    )
    max_minutes: float = flag(10.0, "Time for all steps; those that no longer fit are named and not run. Default: 10.")
    output_dir: str = flag("outputs/gpu_check", "Folder of gpu_check.json and of the logs. Default: outputs/gpu_check.")
    docs: str | None = flag(
        None, "Fill the tables of speed.md and memory.md there, and write their figures beside them.", metavar="FOLDER"
    )
