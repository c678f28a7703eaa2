"""The recipes' command line: TRL's own flags, this project's few, and defaults that are right for OCR."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser

from dsocr.images import LAYOUTS
from dsocr.trackers import check_trackers


# Attention, dense MLP and shared experts of the language model; right for v1 and v2, bare and 4-bit. The vision encoders
# have q_proj and v_proj too, so a bare name would put most of the adapter there.
LANGUAGE_MODEL_TARGETS = (
    r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(shared_experts\.)?(gate|up|down)_proj)"
)


@dataclass
class OcrScriptArguments(ScriptArguments):
    """Arguments of the training recipes beyond TRL's own.

    Without --model_name_or_path the built-in tiny model is trained, without --dataset_name the built-in rendered
    handwriting.
    """

    image_column: str | None = field(
        default=None, metadata={"help": "Column of the images, when it is not called image, file_name or image_path."}
    )
    text_column: str | None = field(
        default=None, metadata={"help": "Column of the texts, when it is not called text, transcription or label."}
    )
    image_mode: str | None = field(
        default=None,
        metadata={"help": "tiny, small, base, large or gundam (v2: small, base, gundam). Default: gundam."},
    )
    image_layout: str | None = field(
        default=None,
        metadata={
            "help": "original (upstream's own), pad (letters keep their shape), or wrap (a long line is broken into rows "
            "on the global view, without tiles). Default: original.",
            "choices": list(LAYOUTS),
        },
    )
    prompt: str | None = field(
        default=None, metadata={"help": "Prompt with <image> exactly once. Default: the model's usual one."}
    )
    on_bad_sample: str = field(
        default="raise",
        metadata={
            "help": "What to do with a missing or damaged image, an empty or over-long text: raise, or skip and count.",
            "choices": ["raise", "skip"],
        },
    )
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the lines held out, by page, when the dataset has no test split."}
    )
    augment: bool = field(
        default=False, metadata={"help": "Vary the training images (slant, light, blur, ...); for small sets."}
    )
    cache_vision_features: bool = field(
        default=True,
        metadata={
            "help": "Compute the vision features of every image once, while the vision tower is frozen; what is read only "
            "once, and varied images, are left out."
        },
    )
    vision_cache_gib: float = field(
        default=8.0, metadata={"help": "Keep no more vision features in memory than this; more go to disk."}
    )
    vision_cache_dir: str | None = field(
        default=None,
        metadata={"help": "Keep vision features in this folder, for further runs too. Default: memory, or output_dir."},
    )
    fold: str | None = field(
        default=None, metadata={"help": "Cross-validation: 2/5 holds out the second of five folds, by page."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on no more than this many lines."})
    max_eval_samples: int | None = field(
        default=200, metadata={"help": "Evaluate on no more than this many held-out lines."}
    )
    extra_eval_datasets: list[str] = field(
        default_factory=list,
        metadata={"help": "Further held-out sets as NAME=PATH; their CER before and after stands in the results."},
    )
    max_new_tokens: int = field(default=256, metadata={"help": "Longest answer that evaluation generates, in tokens."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a better CER. Default: never."}
    )
    quantize_vision: bool = field(
        default=False, metadata={"help": "With --load_in_4bit: quantise the vision tower and the projector too."}
    )
    plan: bool = field(
        default=False,
        metadata={"help": "Say how much memory the run would need on a GPU, and stop. Nothing is loaded."},
    )
    json: bool = field(default=False, metadata={"help": "With --plan: print JSON."})


def recipe_defaults(*, planning: bool = False) -> dict:
    """Defaults of the recipes, as this machine needs them.

    Args:
        planning: A memory plan is made, for a GPU with bf16, whatever this machine has.
    """
    cuda = torch.cuda.is_available()
    bf16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    fp16 = cuda and not bf16
    return {
        "output_dir": "outputs/sft_lora",
        "use_cpu": not cuda,
        "bf16": bf16,
        "fp16": fp16,
        "dtype": "bfloat16" if bf16 or planning else "float16" if fp16 else "float32",
        "use_peft": True,
        "lora_target_modules": [LANGUAGE_MODEL_TARGETS],
        # Vision runs without gradient, so checkpointing recomputes the language model alone.
        "activation_checkpointing": cuda or planning,
        "remove_unused_columns": False,
        "max_length": None,
        "learning_rate": 2e-4,
        "num_train_epochs": 3.0,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 8,
        "gradient_accumulation_steps": 4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        # Random batches of handwritten lines with tiles were padded by 16 %, these by 3 % (batch 8, image mode gundam).
        "train_sampling_strategy": "group_by_length",
        "logging_nan_inf_filter": False,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_cer",
        # Without it Trainer would keep the checkpoint with the highest error rate.
        "greater_is_better": False,
        "report_to": "none",
    }


def qlora_defaults(*, planning: bool = False) -> dict:
    """What `recipes/qlora.py` changes of `recipe_defaults`: a 4-bit base, and as little memory as there may be."""
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


def build_parser(*, planning: bool = False, qlora: bool = False) -> TrlParser:
    """TRL's parser over `(OcrScriptArguments, SFTConfig, ModelConfig)` with this project's defaults.

    The defaults are set on the parser, before parsing: SFTConfig refuses to be built with its own on a machine without
    a GPU.
    """
    parser = TrlParser((OcrScriptArguments, SFTConfig, ModelConfig))
    parser.set_defaults(**recipe_defaults(planning=planning))
    if qlora:
        parser.set_defaults(**qlora_defaults(planning=planning))
    return parser


def complete_argv(argv: Sequence[str]) -> list[str]:
    """Spell out what argparse or TRL would not understand: a bare `--resume_from_checkpoint`, `--config=FILE`."""
    completed = []
    for index, word in enumerate(argv):
        if word.startswith("--config="):
            completed += ["--config", word.removeprefix("--config=")]
            continue
        completed.append(word)
        following = argv[index + 1] if index + 1 < len(argv) else "--"
        if word == "--resume_from_checkpoint" and following.startswith("--"):
            completed.append("true")
    return completed


def check_config_file(parser: TrlParser, path: str) -> None:
    """Refuse a config file with an unknown key, or a list where a single value belongs.

    Raises:
        ValueError: naming the file and the key. (TRL itself lets wrong types through.)
    """
    if not Path(path).is_file():
        raise ValueError(f"--config {path}: there is no such file.")
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"--config {path}: expected `key: value` lines.")
    actions = {action.dest: action for action in parser._actions}
    for key, value in content.items():
        if key == "env":
            continue
        if key not in actions:
            raise ValueError(f"--config {path}: unknown key {key!r}.")
        takes_list = actions[key].nargs in ("+", "*")
        if isinstance(value, list) != takes_list and value is not None:
            wanted = "a list" if takes_list else "a single value"
            raise ValueError(f"--config {path}: {key} takes {wanted}, found {value!r}.")
        convert = actions[key].type
        if convert and not takes_list and isinstance(value, str | int | float):
            try:
                convert(str(value))
            except (TypeError, ValueError) as error:
                raise ValueError(f"--config {path}: {key}: {value!r} is of the wrong type ({error}).") from error


def check_target_modules(targets: str | list[str] | None) -> None:
    """Refuse a comma list: `a,b` is one regular expression that matches nothing, and `a, b` trains `b` alone.

    Raises:
        ValueError: with the spelling that works. A regular expression such as `.*q_proj{1,3}` passes.
    """
    words = targets if isinstance(targets, list) else [targets or ""]
    for word in words:
        if re.fullmatch(r"[\w.]*(,[\w.]*)+", word):
            names = [name for given in words for name in given.split(",") if name]
            raise ValueError(
                f"--lora_target_modules {' '.join(words)}: names are separated by blanks, without commas: "
                f"--lora_target_modules {' '.join(names)}. A single word is a regular expression."
            )


def check_quantization(script_args: OcrScriptArguments, model_args: ModelConfig) -> None:
    """Refuse what the 4-bit path does not do.

    Raises:
        ValueError: naming the flag.
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


def parse_arguments(argv: Sequence[str], *, qlora: bool = False) -> tuple[OcrScriptArguments, SFTConfig, ModelConfig]:
    """Parse a recipe's command line; a mistake ends in one clear line, exit code 2.

    Args:
        argv: The words after the script's name.
        qlora: Use the defaults of `recipes/qlora.py`.
    """
    parser = build_parser(planning="--plan" in argv, qlora=qlora)
    argv = complete_argv(argv)
    try:
        if "--config" in argv:
            position = argv.index("--config")
            if position + 1 >= len(argv):
                raise ValueError("--config needs a file.")
            check_config_file(parser, argv[position + 1])
        script_args, training_args, model_args = parser.parse_args_and_config(argv)
        check_target_modules(model_args.lora_target_modules)
        check_quantization(script_args, model_args)
        check_trackers(training_args.report_to)
        if script_args.augment and training_args.dataloader_persistent_workers:
            raise ValueError(
                "--augment needs --dataloader_persistent_workers false: such workers never hear of a new epoch."
            )
        if script_args.dataset_streaming:
            raise ValueError("--dataset_streaming is not supported: lines are checked before training.")
        if training_args.load_best_model_at_end and training_args.metric_for_best_model in ("cer", "eval_cer"):
            training_args.greater_is_better = False
    except ValueError as error:
        parser.error(str(error))
    return script_args, training_args, model_args


def with_demo_config(argv: Sequence[str], config: str | Path, *, qlora: bool = False) -> list[str]:
    """Put the demonstration's config file in front of a command line that names no model, no dataset and no config.

    Args:
        argv: The words after the script's name.
        config: The config file.
        qlora: Write to a folder of its own.
    """
    names = {word.split("=")[0] for word in argv}
    if names & {"--model_name_or_path", "--dataset_name", "--config", "--help", "-h"}:
        return list(argv)
    folder = ["--output_dir", "outputs/demo_qlora"] if qlora and "--output_dir" not in names else []
    return ["--config", str(config), *folder, *argv]
