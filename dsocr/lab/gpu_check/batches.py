"""Training steps with kept vision features, as batches grow: rate, share of the device's rate, memory and its plan."""

import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from dsocr.lab.flops import count_step_flops, measure_matrix_rate
from dsocr.lab.gpu_check.setup import CheckSetup, Figures, NotOnThisDevice, Probe, free_memory, refuse_unplanned
from dsocr.lab.levers import ALL, PATHS
from dsocr.lab.memory import sixteen_bit
from dsocr.lab.profiling import LAUNCHES, WAITS, count_calls
from dsocr.lab.random_models import StepOptions
from dsocr.lab.training_step import TrainingStep
from dsocr.models.adapter_targets import LANGUAGE_MODEL_TARGETS
from dsocr.training.memory_plan.plan import largest_image, plan_memory
from dsocr.training.memory_plan.settings import MemorySettings


# The mode of the presets, with the largest image that it has: the plan assumes the same.
IMAGE_MODE = "gundam"
_ANSWER_TOKENS = {"tiny": 24, "full": 200}


def growth_step(setup: CheckSetup, checkpointing: bool) -> StepOptions:
    """The step whose batch grows."""
    geometry = setup.processor(IMAGE_MODE).geometry
    answer = _ANSWER_TOKENS[setup.size]
    size = largest_image(geometry)
    return StepOptions(geometry, size, 1, answer_tokens=answer, dtype=sixteen_bit(), checkpointing=checkpointing)


def plan_kept_step(setup: CheckSetup, options: StepOptions) -> int:
    """Planned peak bytes of a step that finds its vision features ready.

    It is planned in bfloat16 on cards without it too: float16 has the same size, and fake tensors know the experts'
    grouped product in bfloat16 alone.
    """
    settings = MemorySettings(
        target_modules=LANGUAGE_MODEL_TARGETS,
        batch_size=options.batch_size,
        eval_batch_size=1,
        answer_tokens=options.answer_tokens,
        checkpointing=options.checkpointing,
        optim=options.optim,
    )
    plan = plan_memory(setup.config(), options.geometry, settings)
    stays = plan.weights_bytes + plan.adapter_bytes + plan.gradient_bytes + plan.optimizer_bytes
    return stays + max(plan.language_bytes, plan.logits_bytes, plan.update_bytes)


class _Steps:
    """One model at a time, with or without checkpointing; the next one takes its place.

    Attributes:
        matrix_rate: Operations per second of the device.
        sample_flops: Operations of a step for one sample, its vision left out.
    """

    def __init__(self, setup: CheckSetup):
        self._setup = setup
        self._step: TrainingStep | None = None
        flops = count_step_flops(setup.config(), growth_step(setup, False))
        self.sample_flops = flops.total - flops.vision
        self.matrix_rate = measure_matrix_rate(setup.place, sixteen_bit(), setup.matrix_side)

    def take(self, batch_size: int, checkpointing: bool) -> TrainingStep:
        options = replace(growth_step(self._setup, checkpointing), batch_size=batch_size)
        if self._step is None or self._step.options.checkpointing != checkpointing:
            self._step = None
            free_memory()
            self._step = TrainingStep(self._setup.model(dtype=options.dtype), options)
        elif self._step.options != options:
            self._step.resize(options)
        self._step.keep_features_alone()
        return self._step


def _measure(setup: CheckSetup, steps: _Steps, batch_size: int, checkpointing: bool) -> Figures:
    asked = {"batch": batch_size, "checkpointing": checkpointing}
    planned = plan_kept_step(setup, replace(growth_step(setup, checkpointing), batch_size=batch_size))
    levers = PATHS[ALL]
    try:
        step = steps.take(batch_size, checkpointing)
        step.run(levers)
        seconds = statistics.median(step.run(levers)["step"] for _ in range(setup.repeats))
        # What the allocator kept from other steps does not belong to this one.
        free_memory()
        allocated = step.measure_peak_bytes(levers)
    except torch.OutOfMemoryError:
        refuse_unplanned(setup, planned, **asked)
    options, reserved = step.options, torch.cuda.max_memory_reserved() if setup.on_gpu else None
    tokens = 1 + options.geometry.count_tokens(*options.image_size) + options.answer_tokens
    return {
        **asked,
        "seconds": seconds,
        "samples_per_second": batch_size / seconds,
        "tokens_per_second": batch_size * tokens / seconds,
        "mfu": batch_size * steps.sample_flops / seconds / steps.matrix_rate,
        "allocated_peak_bytes": allocated,
        "reserved_peak_bytes": reserved,
        "planned_peak_bytes": planned,
    }


def _count(setup: CheckSetup, steps: _Steps, batch_size: int, checkpointing: bool) -> Figures:
    if not setup.on_gpu:
        raise NotOnThisDevice("launches and waits are calls of CUDA")
    step = steps.take(batch_size, checkpointing)
    step.run(PATHS[ALL])
    calls = count_calls(lambda: step.run(PATHS[ALL]), setup.place)
    return {
        "batch": batch_size,
        "checkpointing": checkpointing,
        "launches": sum(calls.get(name, 0) for name in LAUNCHES),
        # One of them is this measurement's own, which reads the loss.
        "waits": max(0, sum(calls.get(name, 0) for name in WAITS) - 1),
    }


def describe_batch(batch_size: int, checkpointing: bool) -> str:
    """Name of a row."""
    return f"batch {batch_size}, {'checkpointing' if checkpointing else 'no checkpointing'}"


def batch_probes(setup: CheckSetup) -> Iterator[Probe]:
    """Every batch size, with its launches and waits; the largest one comes last, since it may not fit."""
    steps = _Steps(setup)
    for batch_size, checkpointing in setup.step_batches:
        name = describe_batch(batch_size, checkpointing)
        yield name, partial(_measure, setup, steps, batch_size, checkpointing)
        yield f"launches, {name}", partial(_count, setup, steps, batch_size, checkpointing)
