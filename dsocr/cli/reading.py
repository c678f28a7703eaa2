"""Command lines of evaluate.py and transcribe.py."""

from dataclasses import dataclass

from dsocr.cli.parser import flag
from dsocr.reading.generation import ReadingOptions
from dsocr.reading.reader import Reader, load_reader
from dsocr.reading.transcript_files import FORMATS


@dataclass
class ReadingArguments:
    """Arguments shared by evaluate.py and transcribe.py. An adapter knows its base, image mode, layout and prompt."""

    model_name_or_path: str | None = flag(
        None, "Base model: Hub id or folder. Default: the adapter's own base, or the built-in tiny one."
    )
    model_revision: str = flag("main", "Branch, tag or commit of a Hub id.")
    adapter: str | None = flag(None, "Folder of an adapter that a training run wrote.")
    load_in_4bit: bool = flag(False, "Quantise the base while it is loaded.")
    max_new_tokens: int = flag(256, "Longest answer, in tokens.")
    per_device_eval_batch_size: int = flag(8, "Images in a batch.")


@dataclass
class EvaluateArguments(ReadingArguments):
    """Arguments of recipes/evaluate.py."""

    dataset_name: str | None = flag(None, "What to read: a metadata file, a folder with one, or a Hub dataset id.")
    dataset_test_split: str | None = flag(None, "Split to read. Default: test if there is one, else every line.")
    image_column: str | None = flag(None, "Column of the images.")
    text_column: str | None = flag(None, "Column of the texts.")
    on_bad_sample: str = flag("raise", "raise, or skip and count.", choices=["raise", "skip"])
    max_eval_samples: int | None = flag(None, "Read no more than this many lines.")
    baseline: str | None = flag(
        None, "A classical engine in the same table: rapidocr, tesseract, or tesseract:rus+eng with its languages."
    )
    output_dir: str = flag("outputs/evaluation", "Folder of predictions and results.")


@dataclass
class TranscribeArguments(ReadingArguments):
    """Arguments of recipes/transcribe.py."""

    inputs: list[str] = flag(
        [], "Images, PDF files, folders, patterns like 'scans/*.jpg'; - reads names from standard input."
    )
    format: str = flag("text", "text, jsonl or alto.", choices=list(FORMATS))
    output: str | None = flag(None, "File to write (alto: folder). Default: the console.")
    segment: bool = flag(False, "The images are whole pages: find their lines first (needs rapidocr).")
    review: str | None = flag(
        None, "Write images and texts side by side, least confident first: a .html or .csv file to correct."
    )
    dpi: int = flag(200, "Resolution at which PDF pages are drawn.")


def load_reader_of(arguments: ReadingArguments) -> Reader:
    """Load the model, adapter and processor of a command line."""
    return load_reader(
        arguments.model_name_or_path,
        arguments.adapter,
        revision=arguments.model_revision,
        load_in_4bit=arguments.load_in_4bit,
    )


def reading_options(arguments: ReadingArguments) -> ReadingOptions:
    """Options of a command line for reading images."""
    return ReadingOptions(batch_size=arguments.per_device_eval_batch_size, max_new_tokens=arguments.max_new_tokens)
