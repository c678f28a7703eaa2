"""The memory that loading and a training step take in each precision, beside the memory plan, on the device at hand."""

import gc
import itertools
import statistics
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from dsocr.common.logs import setup_logging
from dsocr.common.machine import half_dtype, prepare_process
from dsocr.data.synthetic import generate_lines
from dsocr.lab.random_models import StepOptions
from dsocr.lab.rendered_lines import EVALUATION_SEED, evaluate_lines
from dsocr.lab.training_step import TrainingStep
from dsocr.models import load_model, native_config
from dsocr.models.adapter_targets import LANGUAGE_MODEL_TARGETS
from dsocr.models.loading import TINY_BASE, find_model_class, load_raw_config
from dsocr.models.quantization import OcrQuantizationConfig, weight_bytes
from dsocr.samples.geometry import ImageGeometry
from dsocr.samples.processor import OcrProcessor
from dsocr.training.memory_plan.plan import largest_image, plan_memory
from dsocr.training.memory_plan.settings import MemorySettings


@dataclass(frozen=True)
class Precision:
    """One way to hold the weights; the fields have their meaning in `MemorySettings`."""

    title: str
    load_in_4bit: bool = False
    quantize_vision: bool = False
    quantize_experts: bool = True


PRECISIONS = {
    "bf16": Precision("bf16 LoRA"),
    "bnb": Precision("4 bit as bitsandbytes does it", load_in_4bit=True, quantize_vision=True, quantize_experts=False),
    "4bit": Precision("4 bit here", load_in_4bit=True),
    "4bit_vision": Precision("4 bit here, vision too", load_in_4bit=True, quantize_vision=True),
}
IMAGE_MODE = "base"
# The smallest step there is, because whoever measures memory has little: one line of text, with checkpointing.
BATCH_SIZE, ANSWER_TOKENS, STEPS = 1, 64, 3
CER_LINES = 400
# The tower runs without gradient, as in a run. Each loader brings SAM's attention, and the head is TRL's own.
_LEVERS = ("no_grad",)


def sixteen_bit() -> torch.dtype:
    """The GPU's own 16-bit type, as in training; on a CPU that of the released weights."""
    return half_dtype() if torch.cuda.is_available() else torch.bfloat16


def memory_step(geometry: ImageGeometry) -> StepOptions:
    """The step that is measured: the largest image of the mode, in 16 bit around whatever the weights are."""
    size, dtype = largest_image(geometry), sixteen_bit()
    return StepOptions(geometry, size, BATCH_SIZE, answer_tokens=ANSWER_TOKENS, dtype=dtype, checkpointing=True)


class _AnonymousMemory:
    """Peak of this process's own memory above its start, sampled every 2 ms (Linux); mapped files are not counted."""

    def __enter__(self):
        self._start, self.peak, self._ended = self._now(), 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    @staticmethod
    def _now() -> int:
        status = Path("/proc/self/status")
        for line in status.read_text(encoding="ascii").splitlines() if status.is_file() else ():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise ValueError("this system has no RssAnon in /proc/self/status; measure on Linux or on a GPU.")

    def _sample(self) -> None:
        while not self._ended.wait(0.002):
            self.peak = max(self.peak, self._now() - self._start)

    def __exit__(self, *exception):
        self._ended.set()
        self._thread.join()
        self.peak = max(self.peak, self._now() - self._start)


class _GpuMemory:
    """Peak of the allocator above its start."""

    def __enter__(self):
        torch.cuda.reset_peak_memory_stats()
        self._start = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *exception):
        self.peak = torch.cuda.max_memory_allocated() - self._start


def _bytes_outside() -> int:
    """GPU memory that the allocator does not hold: the CUDA context, and other processes."""
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def pretend_card(card_gib: float) -> None:
    """Allow this process the memory of a smaller card, whose CUDA context takes its share too."""
    torch.zeros(1, device="cuda")
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((card_gib * 2**30 - _bytes_outside()) / total)


def _load(folder: str | Path, precision: Precision, device: torch.device) -> PreTrainedModel:
    place, dtype = {"": str(device)}, sixteen_bit()
    if precision.quantize_experts:
        return load_model(
            str(folder),
            dtype=dtype,
            device_map=place,
            load_in_4bit=precision.load_in_4bit,
            quantize_vision=precision.quantize_vision,
        )
    # Without this project's loader, as everybody else quantises these models.
    config = native_config(load_raw_config(str(folder)))
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = find_model_class(config.model_type).from_pretrained(
        folder, config=config, dtype=dtype, quantization_config=settings, device_map=place
    )
    for module in model.modules():
        # As in `dsocr.models.quantization`: with AVX512-BF16 a backward pass after an evaluation has no gradient.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def measure_steps(
    model: PreTrainedModel, options: StepOptions, target_parameters: list[str] | None = None
) -> dict[str, Any]:
    """Seconds of a step (median), peak bytes of a step with the model, and on a GPU the bytes outside the allocator."""
    step = TrainingStep(model, options, target_parameters)
    step.run(_LEVERS)
    seconds = statistics.median(step.run(_LEVERS)["step"] for _ in range(STEPS))
    peak = step.measure_peak_bytes(_LEVERS)
    outside = _bytes_outside() if step.device.type == "cuda" else None
    return {"seconds": seconds, "step_peak_bytes": peak, "context_bytes": outside}


def plan_precision(
    config: PreTrainedConfig, precision: Precision, options: StepOptions, target_parameters: list[str] | None = None
) -> dict[str, int]:
    """`planned_weights_bytes` and `planned_peak_bytes` of the step that `measure_steps` measures.

    It is planned in bfloat16 on cards without it too: float16 has the same size, and fake tensors know the experts'
    grouped product in bfloat16 alone.
    """
    settings = MemorySettings(
        load_in_4bit=precision.load_in_4bit,
        quantize_vision=precision.quantize_vision,
        quantize_experts=precision.quantize_experts,
        target_modules=LANGUAGE_MODEL_TARGETS,
        target_parameters=target_parameters,
        batch_size=options.batch_size,
        eval_batch_size=1,
        answer_tokens=options.answer_tokens,
        checkpointing=options.checkpointing,
        optim=options.optim,
        # TRL's head scores the labelled positions alone where it has Triton.
        compact_head=torch.cuda.is_available(),
    )
    planned = plan_memory(config, options.geometry, settings)
    return {"planned_weights_bytes": planned.weights_bytes, "planned_peak_bytes": planned.training_peak_bytes}


def measure_precision(name: str, folder: str | Path, options: StepOptions, card_gib: float | None) -> dict[str, Any]:
    """Measure one precision: memory of loading and of a step, and the CER of the built-in base.

    Args:
        name: One of `PRECISIONS`.
        folder: A bf16 checkpoint.
        options: The training step.
        card_gib: On a GPU: allow no more memory than a card of so many GiB has; `None` allows all.

    Returns:
        `weights_bytes`, `loading_peak_bytes`, the figures of `measure_steps`, `planned_weights_bytes` and
        `planned_peak_bytes` (the plan of the same step), and `cer` on unseen printed lines.
    """
    precision = PRECISIONS[name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    if card_gib and on_gpu:
        pretend_card(card_gib)
    # Building one imports bitsandbytes now; the memory of its import is not that of loading.
    OcrQuantizationConfig()
    if on_gpu and precision.load_in_4bit:
        options = replace(options, optim="paged_adamw_8bit")
    with _GpuMemory() if on_gpu else _AnonymousMemory() as loading:
        model = _load(folder, precision, device)
    gc.collect()
    row = {"weights_bytes": weight_bytes(model), "loading_peak_bytes": loading.peak, **measure_steps(model, options)}
    row |= plan_precision(model.config, precision, options)
    del model
    gc.collect()
    return row | {"cer": _read_built_in_base(precision, device)}


def _read_built_in_base(precision: Precision, device: torch.device) -> float:
    model = _load(TINY_BASE, precision, device)
    lines = list(itertools.islice(generate_lines("print", seed=EVALUATION_SEED), CER_LINES))
    return evaluate_lines(model, OcrProcessor.from_pretrained(TINY_BASE), lines).cer


def begin_process() -> None:
    """Set up a process that measures: as a recipe's, but silent."""
    prepare_process()
    setup_logging(None, is_main=False)
    disable_progress_bar()


def measure_in_process(name: str, folder: str | Path, options: StepOptions, card_gib: float | None) -> dict[str, Any]:
    """Call `measure_precision` in a fresh Python process, whose memory holds nothing of an earlier measurement.

    Raises:
        RuntimeError: the process died, as it does when the system's memory runs out.
    """
    # Spawned, because a forked process would begin with the memory of this one.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=begin_process) as pool:
        try:
            return pool.submit(measure_precision, name, folder, options, card_gib).result()
        except BrokenProcessPool as error:
            raise RuntimeError(f"the process that measured {name!r} died; did the memory run out?") from error
