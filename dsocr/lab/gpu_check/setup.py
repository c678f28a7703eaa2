"""What every step of the check is given, and what a step is made of."""

import gc
import math
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from dsocr.common.machine import find_unused_gpu, half_dtype
from dsocr.lab.random_models import build_random_model, sized_config, sized_processor
from dsocr.samples.processor import OcrProcessor
from dsocr.training.memory_plan.live_memory import LiveMemory


Figures = dict[str, Any]
# One measurement of a step: its name, and the function that makes it.
Probe = tuple[str, Callable[[], Figures]]
Result = TypeVar("Result")

# Keys of a row's figures when there are none: the reason.
FAILED, NOT_HERE = "failed", "not_on_this_device"


# Batch sizes of a training step at full size, with checkpointing and without.
FULL_BATCHES = ((2, True), (8, True), (8, False), (16, False), (32, False))


# Size of a card in GiB, and the presets that must fit it.
CARDS = {12: ("qlora_4gb", "qlora_8gb"), 16: ("lora_16gb",)}
STEP_NAMES = (
    "environment",
    "kernels",
    "precisions",
    "batches",
    "quantized",
    "vision",
    "reading",
    "resuming",
    "cards",
    "levers",
)


class NotOnThisDevice(Exception):
    """A measurement needs something that this device does not have.

    Args:
        reason: What it is.
        **figures: What is known all the same.
    """

    def __init__(self, reason: str, **figures: Any):
        super().__init__(reason)
        self.figures = figures


@dataclass(frozen=True)
class CheckSetup:
    """The size of the check, and where it runs. It is passed to other processes, so it holds plain values.

    Attributes:
        size: `"tiny"` or `"full"`.
        version: `"v1"` or `"v2"`.
        device: `"cpu"` or `"cuda"`.
        output_dir: Folder of logs and of the demonstration's runs.
        configs: Folder of the presets.
        repeats: Timed rounds of a measurement.
        step_batches: Batch sizes of a training step, with checkpointing and without.
        reading_batches: Batch sizes of reading.
        images: Images whose features are computed, and lines that the built-in base reads.
        new_tokens: Tokens read for every line.
        matrix_side: Side of the matrices whose product is timed.
    """

    size: str
    version: str
    device: str
    output_dir: str
    configs: str
    repeats: int
    step_batches: tuple[tuple[int, bool], ...]
    reading_batches: tuple[int, ...]
    images: int
    new_tokens: int
    matrix_side: int

    @property
    def place(self) -> torch.device:
        """The device."""
        return torch.device(self.device)

    @property
    def on_gpu(self) -> bool:
        """Whether the check runs on a GPU."""
        return self.device == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Type of training: the card's half type, float32 on a CPU."""
        return half_dtype() if self.on_gpu else torch.float32

    @property
    def part_size(self) -> str:
        """Size of the model where one with all layers would only take longer: the released widths in four layers."""
        return "mid" if self.size == "full" else "tiny"

    def config(self, size: str | None = None) -> PreTrainedConfig:
        """Config of the model of that size, by default the check's own."""
        return sized_config(size or self.size, self.version)

    def model(self, size: str | None = None, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """A random model on the device."""
        return build_random_model(self.config(size), dtype or self.dtype, self.place)

    def processor(self, image_mode: str) -> OcrProcessor:
        """Processor of the model."""
        return sized_processor(self.size, self.version, image_mode)


def choose_setup(size: str, version: str, output_dir: str | Path, configs: str | Path) -> CheckSetup:
    """The setup of a check of a size on this machine.

    Raises:
        ValueError: when `size` is `"full"` and torch sees no GPU.
    """
    on_gpu = torch.cuda.is_available()
    if size == "full" and not on_gpu:
        reason = find_unused_gpu() or "torch sees no NVIDIA card."
        raise ValueError(f"--size full needs a GPU: {reason} --size tiny tries the script on a CPU.")
    full = size == "full"
    return CheckSetup(
        size=size,
        version=version,
        device="cuda" if on_gpu else "cpu",
        output_dir=str(output_dir),
        configs=str(configs),
        repeats=5 if full else 1,
        step_batches=FULL_BATCHES if full else ((1, True), (2, False), (4, False)),
        reading_batches=(8, 64) if full else (2, 4),
        images=64 if full else 6,
        new_tokens=60 if full else 4,
        matrix_side=8192 if full else 256,
    )


def free_memory() -> None:
    """Give memory of deleted models back; a model and its hooks name one another, so they do not go by themselves."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def total_bytes(setup: CheckSetup) -> float:
    """Memory of the GPU, as far as this process may use it; without limit on a CPU."""
    if not setup.on_gpu:
        return math.inf
    return torch.cuda.mem_get_info()[1] * torch.cuda.get_per_process_memory_fraction()


def refuse_unplanned(setup: CheckSetup, planned_bytes: int, **figures: Any) -> NoReturn:
    """Judge a measurement that ran out of memory by its plan.

    Raises:
        RuntimeError: it was planned to fit, so the plan is wrong.
        NotOnThisDevice: it was planned not to fit.
    """
    shown = f"out of memory: {planned_bytes / 1e9:.2f} GB are planned, {total_bytes(setup) / 1e9:.2f} GB are there"
    if planned_bytes < total_bytes(setup):
        raise RuntimeError(shown)
    raise NotOnThisDevice(shown, planned_peak_bytes=planned_bytes, **figures)


def measure_peak_bytes(device: torch.device, run: Callable[[], Result]) -> tuple[Result, int]:
    """Result of a function, and the most memory it took on top of what was there: allocated, or of live CPU tensors."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        return result, torch.cuda.max_memory_allocated() - before
    with LiveMemory() as memory:
        result = run()
    return result, memory.peak


def measure_probes(probes: Iterator[Probe]) -> Iterator[tuple[str, Figures]]:
    """Make every measurement of a step; one that fails or cannot be made here leaves its reason, and the rest go on."""
    for name, measure in probes:
        try:
            figures = measure()
        except NotOnThisDevice as error:
            figures = {NOT_HERE: str(error), **error.figures}
        except torch.OutOfMemoryError:
            figures = {NOT_HERE: "out of memory"}
        # Whatever it is, it belongs into the report, its trace into the step's log; the others do not depend on it.
        except Exception as error:
            traceback.print_exc()
            figures = {FAILED: f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        free_memory()
        yield name, figures
