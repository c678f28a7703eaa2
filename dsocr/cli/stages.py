"""Stages of a training run, one function each, called in order by `recipes/sft_lora.py`."""

import logging
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback
from trl import get_peft_config

from dsocr.cli.machine_choices import choose_batch, choose_workers
from dsocr.cli.options import cache_options, data_options, memory_settings, reading_options, replay_options
from dsocr.cli.training import ParsedArguments
from dsocr.common.logs import Stages, setup_logging
from dsocr.common.machine import describe_machine, warn_about_unused_gpu
from dsocr.common.run_files import SKIPPED_NAME
from dsocr.data import BadSamples, TrainingSets, load_training_sets
from dsocr.doctor import examine_quickly
from dsocr.models import freeze_vision, load_model, make_peft_safe, prepare_adapter
from dsocr.models.adapters import AdapterIdentity
from dsocr.models.peft_wrapper import find_guard
from dsocr.reading.replay import load_replay
from dsocr.report.results import write_data_summary
from dsocr.samples.collator import OcrCollator
from dsocr.samples.lengths import SampleMeter
from dsocr.samples.processor import OcrProcessor
from dsocr.samples.vision_cache.cache import FeatureCache
from dsocr.samples.vision_cache.options import choose_cached
from dsocr.training.memory_plan.plan_report import check_gpu, refuse_large_model
from dsocr.training.trainer import OcrTrainer


logger = logging.getLogger(__name__)


def start_run(output_dir: str | Path, *, is_main: bool) -> Stages:
    """Set up logging, log the machine's description, and return the counter of stages."""
    run_logger = setup_logging(output_dir, is_main=is_main)
    run_logger.info("%s", ", ".join(f"{name} {value}" for name, value in describe_machine().items()))
    warn_about_unused_gpu()
    return Stages(run_logger)


def load_processor(args: ParsedArguments, name: str) -> OcrProcessor:
    """Load the base model's processor, with the command line's image mode, layout and prompt."""
    return OcrProcessor.from_pretrained(
        name,
        revision=args.model.model_revision,
        image_mode=args.script.image_mode,
        image_layout=args.script.image_layout,
        prompt=args.script.prompt,
    )


def check_card(args: ParsedArguments, name: str) -> None:
    """Decide what the user left to the machine, and refuse a run too large for its GPU, before anything is loaded.

    Raises:
        NotEnoughMemoryError: when the run does not fit; the message shows the plan.
        ValueError: when there is no GPU for a model of a released size, and the CPU was not asked for.
    """
    if args.training.use_cpu and not args.cpu_is_named:
        refuse_large_model(name, args.model.model_revision)
    on_gpu = not args.training.use_cpu and torch.cuda.is_available()
    card_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory if on_gpu else None
    choose_batch(args, name, card_bytes)
    if not args.training.use_cpu:
        revision, image_mode = args.model.model_revision, args.script.image_mode
        check_gpu(name, memory_settings(args), revision=revision, image_mode=image_mode)


def load_base(args: ParsedArguments, name: str) -> PreTrainedModel:
    """Prepare the base model for training: loaded strictly, guarded, with a frozen vision side."""
    model = load_model(
        name,
        revision=args.model.model_revision,
        # Load a 4-bit model directly on its device; Trainer moves only unquantised models.
        device_map={"": str(args.training.device)} if args.model.load_in_4bit else None,
        dtype=args.model.dtype,
        attn_implementation=args.model.attn_implementation,
        load_in_4bit=args.model.load_in_4bit,
        quantize_vision=args.script.quantize_vision,
        quant_type=args.model.bnb_4bit_quant_type,
        double_quant=args.model.use_bnb_nested_quant,
    )
    make_peft_safe(model)
    freeze_vision(model)
    return model


def identify(args: ParsedArguments, name: str, model: PreTrainedModel, processor: OcrProcessor) -> AdapterIdentity:
    """Identity of the base and processor for this run's adapter."""
    revision = getattr(model.config, "_commit_hash", None) or args.model.model_revision
    return AdapterIdentity(name, revision, processor.to_dict())


def _max_length(args: ParsedArguments, model: PreTrainedModel) -> int:
    return args.training.max_length or model.config.get_text_config().max_position_embeddings


def load_data(
    args: ParsedArguments, source: str, processor: OcrProcessor, model: PreTrainedModel
) -> tuple[TrainingSets, dict[str, int]]:
    """Load and check the sets of the run, write skipped samples and a data summary, and warn of odd data.

    Returns:
        The sets, and the number of skipped samples by reason.
    """
    bad_samples = BadSamples(args.script.on_bad_sample)
    measure = SampleMeter(processor, _max_length(args, model))
    sets = load_training_sets(source, measure, bad_samples, data_options(args))
    if args.script.replay_dataset:
        if not args.model.load_in_4bit:
            model.to(args.training.device)
        output_dir, reading = args.training.output_dir, reading_options(args)
        own, options = len(sets.train), replay_options(args)
        replay = load_replay(options, own, model, processor, measure, bad_samples, reading, output_dir)
        sets = sets.with_replay(replay.lines, replay.origin)
    if args.is_main:
        bad_samples.write(Path(args.training.output_dir) / SKIPPED_NAME)
        write_data_summary(args.training.output_dir, sets, processor, bad_samples.counts)
    for finding in examine_quickly(sets, processor, args.script.max_new_tokens):
        logger.warning("data: %s: %s", finding.message, finding.advice)
    return sets, dict(bad_samples.counts)


def build_trainer(
    args: ParsedArguments,
    model: PreTrainedModel,
    processor: OcrProcessor,
    sets: TrainingSets,
    identity: AdapterIdentity,
    *,
    callbacks: list[TrainerCallback],
    resume: str | None = None,
) -> OcrTrainer:
    """Build the trainer, with LoRA on the model unless `--use_peft false`.

    Raises:
        ValueError: when the checkpoint `resume` belongs to a run with other settings.
    """
    peft_config = get_peft_config(args.model)
    if peft_config is not None:
        peft_config.revision = identity.revision
        prepare_adapter(model, peft_config)
    if args.script.early_stopping_patience is not None:
        callbacks = [*callbacks, EarlyStoppingCallback(args.script.early_stopping_patience)]
    collator = OcrCollator(
        processor,
        # The tower normalises them on its device.
        torch.uint8,
        _max_length(args, model),
        augment=args.script.augment,
        seed=args.training.seed,
    )
    trainer = OcrTrainer(
        model=model,
        args=args.training,
        data_collator=collator,
        train_dataset=sets.train,
        eval_dataset=sets.held_out,
        processing_class=processor,
        peft_config=peft_config,
        callbacks=callbacks,
        reading=reading_options(args),
        identity=identity,
    )
    if resume is not None:
        trainer.check_resume(resume)
    if peft_config is not None and args.is_main:
        trainer.model.print_trainable_parameters()
    return trainer


def cache_features(args: ParsedArguments, trainer: OcrTrainer, sets: TrainingSets) -> FeatureCache | None:
    """Compute the vision features of images read more than once; `None` when caching gains nothing."""
    options = cache_options(args, len(sets.train))
    chosen = choose_cached(sets, trainer.model, options)
    features = trainer.cache_features(chosen, options)
    choose_workers(args, images_are_cut=features is None or not any(dataset is sets.train for dataset in chosen))
    return features


def describe_run(model: PreTrainedModel, skipped: dict[str, int]) -> dict[str, Any]:
    """Command, machine, skipped samples and the guard's counts, for `ocr_results.json`."""
    guard = find_guard(model)
    counts = guard.counts() if guard is not None else {}
    return {"command": sys.argv, "machine": describe_machine(), "skipped": skipped, **counts}
