"""From parsed arguments to the plain values that the library's functions take; one function for each taker."""

from pathlib import Path

import torch
from trl import ModelConfig, SFTConfig

from dsocr.arguments import OcrScriptArguments


def image_options(script_args: OcrScriptArguments) -> dict:
    """The arguments of `OcrProcessor.from_pretrained` that come from the command line."""
    return {name: getattr(script_args, name) for name in ("image_mode", "image_layout", "prompt")}


def data_options(script_args: OcrScriptArguments, training_args: SFTConfig) -> dict:
    """The arguments of `load_training_sets` that come from the command line."""
    return {
        "train_split": script_args.dataset_train_split,
        "test_split": script_args.dataset_test_split,
        "config": script_args.dataset_config,
        "image_column": script_args.image_column,
        "text_column": script_args.text_column,
        "validation_fraction": script_args.validation_fraction,
        "max_train_samples": script_args.max_train_samples,
        "max_eval_samples": script_args.max_eval_samples,
        "extra": script_args.extra_eval_datasets,
        "fold": script_args.fold,
        "seed": training_args.seed,
    }


def reading_options(script_args: OcrScriptArguments, training_args: SFTConfig) -> dict:
    """The arguments of `evaluate_dataset` that come from the command line."""
    return {
        "batch_size": training_args.per_device_eval_batch_size,
        "max_new_tokens": script_args.max_new_tokens,
        "progress": not training_args.disable_tqdm,
    }


def cache_options(script_args: OcrScriptArguments, training_args: SFTConfig) -> dict:
    """The arguments of `dsocr.features.building.CacheOptions` that come from the command line."""
    return {
        "folder": script_args.vision_cache_dir,
        "fallback_folder": Path(training_args.output_dir) / "vision_features",
        "memory_bytes": script_args.vision_cache_gib * 2**30,
        "in_memory": training_args.world_size == 1 and training_args.dataloader_num_workers == 0,
    }


def caching_choice(script_args: OcrScriptArguments, training_args: SFTConfig, n_samples: int) -> dict:
    """The arguments of `choose_cached` that come from the command line.

    Args:
        script_args: Parsed.
        training_args: Parsed.
        n_samples: Size of the training set.
    """
    again = training_args.num_train_epochs > 1
    if training_args.max_steps > 0:
        per_step = training_args.train_batch_size * training_args.gradient_accumulation_steps * training_args.world_size
        again = training_args.max_steps * per_step > n_samples
    return {
        "wanted": script_args.cache_vision_features,
        "augment": script_args.augment,
        "train_again": again,
    }


def loading_options(script_args: OcrScriptArguments, training_args: SFTConfig, model_args: ModelConfig) -> dict:
    """The arguments of `load_model` that come from the command line."""
    return {
        # Trainer moves a model to its device; a packed one is loaded where it is to stay.
        "device_map": {"": str(training_args.device)} if model_args.load_in_4bit else None,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        "load_in_4bit": model_args.load_in_4bit,
        "quantize_vision": script_args.quantize_vision,
        "quant_type": model_args.bnb_4bit_quant_type,
        "double_quant": model_args.use_bnb_nested_quant,
    }


def memory_settings(script_args: OcrScriptArguments, training_args: SFTConfig, model_args: ModelConfig) -> dict:
    """The arguments of `dsocr.memory.settings.MemorySettings`."""
    return {
        "dtype": getattr(torch, model_args.dtype, torch.bfloat16),
        "load_in_4bit": model_args.load_in_4bit,
        "quantize_vision": script_args.quantize_vision,
        "target_modules": model_args.lora_target_modules if model_args.use_peft else None,
        "target_parameters": model_args.lora_target_parameters,
        "lora_r": model_args.lora_r,
        "batch_size": training_args.per_device_train_batch_size,
        "eval_batch_size": training_args.per_device_eval_batch_size,
        "answer_tokens": script_args.max_new_tokens,
        "checkpointing": bool(training_args.activation_checkpointing),
        "optim": getattr(training_args.optim, "value", training_args.optim),
    }
