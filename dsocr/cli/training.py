"""Command line of the training recipes: TRL's own flags, a few more, and defaults suited to OCR."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from trl import ModelConfig, ScriptArguments, SFTConfig

from dsocr.cli.parser import RecipeParser, flag
from dsocr.common.machine import half_dtype
from dsocr.data.checking import OnBadSample
from dsocr.data.training_sets import parse_fold, parse_named_path
from dsocr.models.adapter_targets import LANGUAGE_MODEL_TARGETS
from dsocr.samples.geometry import LAYOUTS
from dsocr.training.trackers import check_trackers


class Undecided(int):
    """A number to fall back on, until the machine decides (`dsocr.cli.machine_choices`)."""


def _batch_size(fallback: int) -> Callable[[str], int]:
    def parse(word: str) -> int:
        return Undecided(fallback) if word == "auto" else int(word)

    # argparse names the type in its message: invalid int value.
    parse.__name__ = "int"
    return parse


@dataclass
class OcrScriptArguments(ScriptArguments):
    """Arguments of the training recipes beyond TRL's own.

    Without --model_name_or_path the recipes train the built-in tiny model, without --dataset_name on rendered
    handwriting.
    """

    image_column: str | None = flag(None, "Column of the images, when it is not called image, file_name or image_path.")
    text_column: str | None = flag(None, "Column of the texts, when it is not called text, transcription or label.")
    image_mode: str | None = flag(
        None, "tiny, small, base, large or gundam (v2: small, base, gundam). Default: gundam."
    )
    image_layout: str | None = flag(
        None,
        "original (upstream's own), pad (letters keep their shape), or wrap (a long line is broken into rows on the "
        "global view, without tiles). Default: original.",
        choices=list(LAYOUTS),
    )
    prompt: str | None = flag(None, "Prompt with <image> exactly once. Default: the model's usual one.")
    on_bad_sample: OnBadSample = flag(
        "raise",
        "What to do with a missing or damaged image, an empty or over-long text: raise, or skip and count.",
        choices=["raise", "skip"],
    )
    validation_fraction: float = flag(0.1, "Share of the lines held out, by page, when the dataset has no test split.")
    fold: str | None = flag(None, "Cross-validation: 2/5 holds out the second of five folds, by page.")
    replay_dataset: list[str] = flag(
        [],
        "Lines to mix into the training set, so that what the base reads already is not forgotten: datasets, or folders of "
        "images, which get the base model's own answers.",
    )
    replay_fraction: float = flag(0.1, "Share of the replayed lines among all training lines.")
    augment: bool = flag(False, "Vary the training images (slant, light, blur, ...); for small sets.")
    vision_cache: str = flag(
        "auto",
        "Compute the vision features of every image once, while the vision tower is frozen, and keep them: auto (in "
        "memory, or in output_dir when they need more than 8 GiB), off, or a folder that further runs use too.",
        metavar="auto|off|FOLDER",
    )
    overwrite_output_dir: bool = flag(
        False, "Start afresh in a folder with checkpoints of an earlier run: they are deleted."
    )
    max_train_samples: int | None = flag(None, "Train on no more than this many lines.")
    max_eval_samples: int | None = flag(200, "Evaluate on no more than this many held-out lines.")
    extra_eval_datasets: list[str] = flag(
        [], "Further held-out sets as NAME=PATH; their CER before and after stands in the results."
    )
    max_new_tokens: int = flag(256, "Longest answer that evaluation generates, in tokens.")
    early_stopping_patience: int | None = flag(
        None, "Stop after this many evaluations without a better CER. Default: never."
    )
    quantize_vision: bool = flag(False, "With --load_in_4bit: quantise the vision tower and the projector too.")
    plan: str | None = flag(
        None,
        "Say how much memory the run would need on a GPU, as text or JSON, and stop. Nothing is loaded.",
        nargs="?",
        const="text",
        choices=["text", "json"],
    )


class ParsedArguments(NamedTuple):
    """A training recipe's command line.

    Attributes:
        script: TRL's script arguments and this project's own.
        training: TRL's and Trainer's arguments.
        model: Model, LoRA and quantisation.
        cpu_is_named: Whether `--use_cpu` stands on the command line or in the config file.
    """

    script: OcrScriptArguments
    training: SFTConfig
    model: ModelConfig
    cpu_is_named: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process is rank 0."""
        return self.training.process_index == 0

    @property
    def is_demo(self) -> bool:
        """Whether this is the built-in demonstration: neither a model nor a dataset is named."""
        return self.model.model_name_or_path is None and self.script.dataset_name is None

    @property
    def is_fresh(self) -> bool:
        """Whether the checkpoints of an earlier run are deleted: asked for, or the demonstration, which is the same each time."""
        return self.script.overwrite_output_dir or (self.is_demo and not self.training.resume_from_checkpoint)


def recipe_defaults(*, planning: bool = False) -> dict:
    """Default arguments of the recipes on this machine.

    Args:
        planning: Use defaults for a GPU with bf16, whatever this machine has; for a memory plan.
    """
    cuda = torch.cuda.is_available()
    bf16 = cuda and half_dtype() is torch.bfloat16
    fp16 = cuda and not bf16
    return {
        "output_dir": "outputs/sft_lora",
        "use_cpu": not cuda,
        "bf16": bf16,
        "fp16": fp16,
        "dtype": "bfloat16" if bf16 or planning else "float16" if fp16 else "float32",
        "use_peft": True,
        "lora_target_modules": [LANGUAGE_MODEL_TARGETS],
        # Vision runs without gradients, so checkpointing recomputes only the language model.
        "activation_checkpointing": cuda or planning,
        "remove_unused_columns": False,
        "max_length": None,
        "learning_rate": 2e-4,
        "num_train_epochs": 3.0,
        "per_device_train_batch_size": 2,
        "dataloader_num_workers": Undecided(0),
        "per_device_eval_batch_size": 8,
        "gradient_accumulation_steps": 4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        # Grouping reduced the padding of handwritten lines with tiles from 16 % to 3 % (batch 8, image mode gundam).
        "train_sampling_strategy": "group_by_length",
        "logging_nan_inf_filter": False,
        # Every trained parameter gets a gradient in every step; looking for others costs a walk over the graph.
        "ddp_find_unused_parameters": False,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 2,
        # Early stopping's count of evaluations without a better CER goes on after a resume.
        "restore_callback_states_from_checkpoint": True,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_cer",
        # Trainer's default keeps the checkpoint with the highest metric, but the lowest CER is best.
        "greater_is_better": False,
        "report_to": "none",
    }


def qlora_defaults(*, planning: bool = False) -> dict:
    """Defaults that `recipes/qlora.py` changes: a 4-bit base, and as little memory as possible."""
    on_gpu = torch.cuda.is_available() or planning
    return {
        "output_dir": "outputs/qlora",
        "load_in_4bit": True,
        "use_bnb_nested_quant": True,
        "activation_checkpointing": True,
        "optim": "paged_adamw_8bit" if on_gpu else "adamw_torch",
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": 8,
    }


def build_parser(*, planning: bool = False, qlora: bool = False, description: str | None = None) -> RecipeParser:
    """Build the parser over `(OcrScriptArguments, SFTConfig, ModelConfig)` with this project's defaults.

    Set the defaults on the parser, before parsing: SFTConfig refuses to be built with its own defaults on a machine
    without a GPU.
    """
    parser = RecipeParser((OcrScriptArguments, SFTConfig, ModelConfig), description)
    parser.set_defaults(**recipe_defaults(planning=planning))
    if qlora:
        parser.set_defaults(**qlora_defaults(planning=planning))
    for action in parser._actions:
        if action.dest == "resume_from_checkpoint":
            # Let the flag stand alone, for the newest complete checkpoint; TRL's version needs a value.
            action.nargs, action.const = "?", "true"
        if action.dest == "per_device_train_batch_size":
            action.type, action.metavar = _batch_size(action.default), "N|auto"
            action.help = (
                "Lines of a micro-batch on each device. auto takes the largest that fits the GPU, and lowers "
                "--gradient_accumulation_steps to keep the effective batch."
            )
        if action.dest == "dataloader_num_workers":
            action.help = "Processes that open and cut images. Default: chosen from the machine's cores, 0 on a CPU."
    return parser


def check_target_modules(targets: str | list[str] | None) -> None:
    """Refuse a comma list: PEFT takes `a,b` as one regular expression that matches nothing, and `a, b` trains only `b`.

    Raises:
        ValueError: for a comma list; the message shows the right spelling. A regular expression such as
            `.*q_proj{1,3}` passes, a broken one does not.
    """
    words = targets if isinstance(targets, list) else [targets or ""]
    for word in words:
        if re.fullmatch(r"[\w.]*(,[\w.]*)+", word):
            names = [name for given in words for name in given.split(",") if name]
            raise ValueError(
                f"--lora_target_modules {' '.join(words)}: names are separated by blanks, without commas: "
                f"--lora_target_modules {' '.join(names)}. A single word is a regular expression."
            )
        try:
            re.compile(word)
        except re.error as error:
            raise ValueError(f"--lora_target_modules {word}: not a regular expression ({error}).") from error


def check_quantization(script_args: OcrScriptArguments, model_args: ModelConfig) -> None:
    """Refuse combinations that 4-bit training does not support.

    Raises:
        ValueError: for such a combination; the message names the flag.
    """
    if model_args.load_in_8bit:
        raise ValueError(
            "--load_in_8bit is not supported: bitsandbytes would leave the routed experts, 73 % of the weights, in 16 "
            "bit. Use --load_in_4bit, which quantises them."
        )
    if script_args.quantize_vision and not model_args.load_in_4bit:
        raise ValueError("--quantize_vision needs --load_in_4bit.")
    if model_args.load_in_4bit and not model_args.use_peft:
        raise ValueError("--load_in_4bit needs --use_peft: packed weights cannot be trained, only an adapter on them.")
    if model_args.lora_target_parameters and model_args.lora_dropout:
        raise ValueError(
            f"--lora_target_parameters needs --lora_dropout 0 (now {model_args.lora_dropout}): PEFT has no dropout for "
            "stacked parameters."
        )


def _check(script_args: OcrScriptArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    check_target_modules(model_args.lora_target_modules)
    check_quantization(script_args, model_args)
    check_trackers(training_args.report_to)
    if script_args.fold is not None:
        parse_fold(script_args.fold)
    for word in script_args.extra_eval_datasets:
        parse_named_path(word)
    if script_args.overwrite_output_dir and training_args.resume_from_checkpoint:
        raise ValueError("--overwrite_output_dir starts afresh, --resume_from_checkpoint goes on: give one of them.")
    if script_args.augment and training_args.dataloader_persistent_workers:
        raise ValueError(
            "--augment needs --dataloader_persistent_workers false: such workers never hear of a new epoch."
        )
    if script_args.dataset_streaming:
        raise ValueError("--dataset_streaming is not supported: lines are checked before training.")


def parse_arguments(
    argv: Sequence[str], *, qlora: bool = False, demo_config: str | Path | None = None, description: str | None = None
) -> ParsedArguments:
    """Parse a recipe's command line; a mistake ends in one clear line, exit code 2.

    Args:
        argv: Command line without the script's name.
        qlora: Use the defaults of `recipes/qlora.py`.
        demo_config: Config file of the demonstration; its values become the defaults when the command line names no
            model, no dataset and no config file.
        description: The recipe's docstring, for `--help`.
    """
    parser = build_parser(
        planning=any(word.startswith("--plan") for word in argv), qlora=qlora, description=description
    )
    if demo_config is not None:
        named, _ = parser.parse_known_args(list(argv))
        if named.model_name_or_path is None and named.dataset_name is None and named.config is None:
            parser.set_defaults_with_config(**parser.load_config(str(demo_config)))
            if qlora:
                parser.set_defaults(output_dir="outputs/demo_qlora")
    script, training, model = parser.parse(argv)
    args = ParsedArguments(script, training, model, parser.names("use_cpu", argv))
    try:
        _check(script, training, model)
    except ValueError as error:
        parser.error(str(error))
    if args.training.load_best_model_at_end and args.training.metric_for_best_model in ("cer", "eval_cer"):
        args.training.greater_is_better = False
    return args
