"""Convert the training recipes' parsed arguments into the options of other rooms, one function for each.

Only this room knows the argument classes. Each function builds a dataclass of another room, or calls its function with
plain parameters, so that a type checker sees both sides of every name.
"""

import logging
from pathlib import Path

import torch

from dsocr.cli.training import ParsedArguments, Undecided
from dsocr.common.run_files import VISION_CACHE_FOLDER
from dsocr.data.training_sets import DataOptions
from dsocr.models.loading import planned_dtype
from dsocr.reading.generation import ReadingOptions
from dsocr.reading.replay import ReplayOptions
from dsocr.samples.vision_cache.options import CacheOptions
from dsocr.training.memory_plan.plan_report import PlanReport, plan_run
from dsocr.training.memory_plan.settings import MemorySettings


logger = logging.getLogger(__name__)


def data_options(args: ParsedArguments) -> DataOptions:
    """Options of the run's data: splits, columns, limits."""
    return DataOptions(
        train_split=args.script.dataset_train_split,
        test_split=args.script.dataset_test_split,
        config=args.script.dataset_config,
        image_column=args.script.image_column,
        text_column=args.script.text_column,
        validation_fraction=args.script.validation_fraction,
        fold=args.script.fold,
        max_train_samples=args.script.max_train_samples,
        max_eval_samples=args.script.max_eval_samples,
        extra=args.script.extra_eval_datasets,
        seed=args.training.seed,
    )


def replay_options(args: ParsedArguments) -> ReplayOptions:
    """Options of the replay."""
    return ReplayOptions(
        sources=args.script.replay_dataset,
        fraction=args.script.replay_fraction,
        image_column=args.script.image_column,
        text_column=args.script.text_column,
        seed=args.training.seed,
    )


def reading_options(args: ParsedArguments) -> ReadingOptions:
    """Options for reading in evaluation."""
    return ReadingOptions(
        batch_size=args.training.per_device_eval_batch_size,
        max_new_tokens=args.script.max_new_tokens,
        progress=not args.training.disable_tqdm,
    )


def cache_options(args: ParsedArguments, n_samples: int) -> CacheOptions:
    """Settings of the vision cache.

    Args:
        args: Parsed command line.
        n_samples: Size of the training set.
    """
    again = args.training.num_train_epochs > 1
    if args.training.max_steps > 0:
        per_step = args.training.train_batch_size * args.training.gradient_accumulation_steps * args.training.world_size
        again = args.training.max_steps * per_step > n_samples
    # Where images are cut in every step, workers may be chosen later (`dsocr.cli.machine_choices`), and each would need a copy.
    undecided = isinstance(args.training.dataloader_num_workers, Undecided) and torch.cuda.is_available()
    alone = args.training.world_size == 1 and args.training.dataloader_num_workers == 0
    return CacheOptions(
        place=args.script.vision_cache,
        run_folder=Path(args.training.output_dir) / VISION_CACHE_FOLDER,
        in_memory=alone and not (undecided and (args.script.augment or not again)),
        augment=args.script.augment,
        train_again=again,
    )


def memory_settings(args: ParsedArguments) -> MemorySettings:
    """Settings that decide the run's memory."""
    return MemorySettings(
        dtype=planned_dtype(args.model.dtype),
        load_in_4bit=args.model.load_in_4bit,
        quantize_vision=args.script.quantize_vision,
        target_modules=args.model.lora_target_modules if args.model.use_peft else None,
        target_parameters=args.model.lora_target_parameters,
        lora_r=args.model.lora_r,
        batch_size=args.training.per_device_train_batch_size,
        eval_batch_size=args.training.per_device_eval_batch_size,
        answer_tokens=args.script.max_new_tokens,
        checkpointing=bool(args.training.activation_checkpointing),
        optim=getattr(args.training.optim, "value", args.training.optim),
    )


def plan_arguments(args: ParsedArguments) -> PlanReport:
    """Plan the memory of a parsed command line."""
    size = args.training.per_device_train_batch_size
    if isinstance(size, Undecided):
        logger.info("the plan is for a batch of %d: auto is decided when the run starts, by its GPU's memory", size)
    return plan_run(
        args.model.model_name_or_path,
        memory_settings(args),
        revision=args.model.model_revision,
        image_mode=args.script.image_mode,
    )
