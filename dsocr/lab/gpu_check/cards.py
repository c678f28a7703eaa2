"""The presets' training steps on a card that is made as small as theirs."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from dsocr.cli.options import memory_settings
from dsocr.cli.training import parse_arguments
from dsocr.lab.gpu_check.setup import CARDS, CheckSetup, Figures, NotOnThisDevice, Probe, free_memory, refuse_unplanned
from dsocr.lab.levers import LEVERS
from dsocr.lab.memory import pretend_card, sixteen_bit
from dsocr.lab.packing import quantize_model
from dsocr.lab.random_models import StepOptions
from dsocr.lab.training_step import TrainingStep
from dsocr.models.sam_attention import split_global_attention
from dsocr.training.memory_plan.plan import largest_image, plan_memory


_IMAGE_MODE = "gundam"
# A run of the presets keeps vision features only from the second epoch on; the first step sees pixels.
_LEVERS = tuple(lever for lever in LEVERS if lever != "features")


def _refuse_smaller(setup: CheckSetup, card_gib: int) -> None:
    if setup.on_gpu and torch.cuda.mem_get_info()[1] < card_gib * 2**30:
        raise NotOnThisDevice(f"this card itself has {torch.cuda.mem_get_info()[1] / 2**30:.1f} GiB")


def _limit(setup: CheckSetup, card_gib: int) -> Figures:
    if not setup.on_gpu:
        raise NotOnThisDevice("a CPU's memory cannot be limited; the presets' steps run without a limit")
    free, total = torch.cuda.mem_get_info()
    _refuse_smaller(setup, card_gib)
    torch.cuda.set_per_process_memory_fraction(1.0)
    pretend_card(card_gib)
    return {"card_gib": card_gib, "outside_bytes": total - free}


def _run_preset(setup: CheckSetup, name: str, card_gib: int) -> Figures:
    _refuse_smaller(setup, card_gib)
    config = str(Path(setup.configs) / f"{name}.yaml")
    args = parse_arguments(["--config", config, "--plan"], qlora=name.startswith("qlora"))
    settings = memory_settings(args)
    geometry = setup.processor(args.script.image_mode or _IMAGE_MODE).geometry
    answer = settings.answer_tokens if setup.size == "full" else 24
    batch = settings.batch_size if setup.size == "full" else 2
    options = StepOptions(
        geometry,
        largest_image(geometry),
        batch,
        answer_tokens=answer,
        dtype=sixteen_bit(),
        checkpointing=settings.checkpointing,
        optim="paged_adamw_8bit" if setup.on_gpu and "8bit" in settings.optim else "adamw_torch",
    )
    # The plan of what runs: TrainingStep has rank 16, whatever the preset has.
    measured = replace(settings, batch_size=batch, eval_batch_size=1, answer_tokens=answer, lora_r=16)
    planned = plan_memory(setup.config(), geometry, measured).training_peak_bytes
    try:
        model = setup.model(dtype=options.dtype).requires_grad_(False)
        split_global_attention(model)
        if settings.load_in_4bit:
            quantize_model(model, quantize_vision=settings.quantize_vision)
        step = TrainingStep(model, options, settings.target_parameters)
        step.run(_LEVERS)
        seconds = step.run(_LEVERS)["step"]
        free_memory()
        peak = step.measure_peak_bytes(_LEVERS)
    except torch.OutOfMemoryError:
        refuse_unplanned(setup, planned, preset=name, card_gib=card_gib, batch=batch)
    return {
        "preset": name,
        "card_gib": card_gib,
        "batch": batch,
        "samples_per_second": batch / seconds,
        "peak_bytes": peak,
        "reserved_peak_bytes": torch.cuda.max_memory_reserved() if setup.on_gpu else None,
        "planned_peak_bytes": planned,
    }


def card_probes(setup: CheckSetup) -> Iterator[Probe]:
    """For each size of card its limit, then a step of each preset under it."""
    for card_gib, presets in CARDS.items():
        yield f"{card_gib} GiB allowed", partial(_limit, setup, card_gib)
        for name in presets:
            yield f"{name} on {card_gib} GiB", partial(_run_preset, setup, name, card_gib)
