"""The command lines of what comes after training: evaluate and transcribe."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from trl import TrlParser

from dsocr.arguments import check_config_file
from dsocr.images import LAYOUTS


@dataclass
class ReadingArguments:
    """What evaluate.py and transcribe.py have in common."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Base model: Hub id or folder. Default: the adapter's own base, or the built-in tiny one."},
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a Hub id."})
    adapter: str | None = field(default=None, metadata={"help": "Folder of an adapter that a training run wrote."})
    dtype: str = field(
        default="auto", metadata={"help": "auto (bfloat16 on a GPU, float32 on a CPU), bfloat16, float16, float32."}
    )
    load_in_4bit: bool = field(default=False, metadata={"help": "Quantise the base while it is loaded."})
    image_mode: str | None = field(
        default=None, metadata={"help": "tiny, small, base, large or gundam. Default: the adapter's, or gundam."}
    )
    image_layout: str | None = field(
        default=None,
        metadata={"help": "original, pad or wrap. Default: the adapter's, or original.", "choices": list(LAYOUTS)},
    )
    prompt: str | None = field(default=None, metadata={"help": "Prompt with <image> exactly once."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest answer, in tokens."})
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Images in a batch."})
    no_loop_guard: bool = field(
        default=False, metadata={"help": "Let a model repeat 20 tokens that it has just written."}
    )
    disable_tqdm: bool = field(default=False, metadata={"help": "No progress bars."})


@dataclass
class EvaluateArguments(ReadingArguments):
    """Arguments of recipes/evaluate.py."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "What to read: a metadata file, a folder with one, or a Hub dataset id."}
    )
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Split to read. Default: test if there is one, else every line."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the images."})
    text_column: str | None = field(default=None, metadata={"help": "Column of the texts."})
    on_bad_sample: str = field(
        default="raise", metadata={"help": "raise, or skip and count.", "choices": ["raise", "skip"]}
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Read no more than this many lines."})
    baseline: str | None = field(
        default=None, metadata={"help": "A classical engine in the same table: tesseract or rapidocr."}
    )
    baseline_language: str = field(default="eng", metadata={"help": "tesseract's language codes, rus+eng for example."})
    output_dir: str = field(default="outputs/evaluation", metadata={"help": "Folder of predictions and results."})


@dataclass
class TranscribeArguments(ReadingArguments):
    """Arguments of recipes/transcribe.py."""

    inputs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Images, PDF files, folders, patterns like 'scans/*.jpg'; - reads names from standard input."
        },
    )
    format: str = field(default="text", metadata={"help": "text, jsonl or alto.", "choices": ["text", "jsonl", "alto"]})
    output: str | None = field(default=None, metadata={"help": "File to write (alto: folder). Default: the console."})
    segment: bool = field(
        default=False, metadata={"help": "The images are whole pages: find their lines first (needs rapidocr)."}
    )
    review: str | None = field(
        default=None,
        metadata={
            "help": "Write images and texts side by side, least confident first: a .html or .csv file to correct."
        },
    )
    dpi: int = field(default=200, metadata={"help": "Resolution at which PDF pages are drawn."})


def parse_reading_arguments(argv: Sequence[str], kind: type) -> ReadingArguments:
    """Parse a command line into one of the classes above; a mistake ends in one clear line, exit code 2.

    Args:
        argv: The words after the script's name.
        kind: `EvaluateArguments` or `TranscribeArguments`.
    """
    parser = TrlParser((kind,))
    try:
        if "--config" in argv:
            position = list(argv).index("--config")
            if position + 1 >= len(argv):
                raise ValueError("--config needs a file.")
            check_config_file(parser, argv[position + 1])
        (arguments,) = parser.parse_args_and_config(list(argv))
    except ValueError as error:
        parser.error(str(error))
    if arguments.dtype == "auto":
        arguments.dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    return arguments


def reader_options(arguments: ReadingArguments) -> dict:
    """The arguments of `load_reader` that come from the command line, beside model and adapter."""
    return {
        "revision": arguments.model_revision,
        "dtype": arguments.dtype,
        "load_in_4bit": arguments.load_in_4bit,
        "image_mode": arguments.image_mode,
        "image_layout": arguments.image_layout,
        "prompt": arguments.prompt,
    }


def generation_options(arguments: ReadingArguments) -> dict:
    """The arguments of `read_lines` that come from the command line."""
    return {
        "batch_size": arguments.per_device_eval_batch_size,
        "max_new_tokens": arguments.max_new_tokens,
        "loop_guard": not arguments.no_loop_guard,
        "progress": not arguments.disable_tqdm,
    }
