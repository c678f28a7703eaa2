"""The released form of the base: bf16 weights and processor, figures of those very weights, and a card with attribution."""

from dataclasses import asdict, fields
from pathlib import Path

from transformers import PreTrainedModel

from dsocr.common.files import write_json, write_text
from dsocr.common.machine import describe_machine
from dsocr.common.run_files import MODEL_CARD_NAME
from dsocr.lab.base.chunks import LineSources
from dsocr.lab.base.evaluation import build_evaluation_sets, measure_sets
from dsocr.lab.base.run import LAST, RELEASE_FOLDER, BaseArguments, Progress
from dsocr.models import load_model
from dsocr.samples.processor import OcrProcessor


LINES = 200
NAMES = {
    "print": "rendered print",
    "fonts_seen": "rendered hands, fonts trained on",
    "fonts_unseen": "rendered hands, fonts never seen",
    "letters_1905": "stanford1905, English letters of 1905",
    "real": "real hands never seen, all sources",
}


def write_release(arguments: BaseArguments, progress: Progress) -> Path:
    """Write `figures.json` and `README.md` into `output_dir/last/release`, measured on its weights; returns the folder."""
    folder = Path(arguments.output_dir) / LAST / RELEASE_FOLDER
    model, processor = load_model(str(folder), dtype="float32"), OcrProcessor.from_pretrained(folder)
    figures = {
        "machine": describe_machine(),
        "arguments": asdict(arguments),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "cer": _measure(arguments, model, processor),
        "history": progress.history,
    }
    write_json(folder / "figures.json", figures)
    write_text(folder / MODEL_CARD_NAME, _card(figures, progress, arguments))
    return folder


def _measure(arguments: BaseArguments, model: PreTrainedModel, processor: OcrProcessor) -> dict[str, float]:
    sources = LineSources(arguments.fonts, arguments.real_lines)
    sets = build_evaluation_sets(sources, arguments.real_lines, arguments.letters, lines=LINES)
    return measure_sets(model, processor, sets)[0]


def _attributions(arguments: BaseArguments) -> list[str]:
    """One line a source of real lines, from its SOURCE.md, and one for the fonts."""
    lines = []
    for path in sorted(Path(arguments.real_lines).glob("*/SOURCE.md")) if arguments.real_lines else ():
        stated = {}
        for row in path.read_text(encoding="utf-8").splitlines():
            name, separator, value = row.removeprefix("- ").partition(": ")
            if separator and row.startswith("- "):
                stated[name] = value
        facts = [stated[name] for name in ("Attribution", "Repository", "Licence") if name in stated]
        lines.append(f"- {path.parent.name}: {'; '.join(facts)}. Changes: {stated.get('Changes made', 'none stated')}.")
    listed = Path(arguments.fonts) / "licences.tsv" if arguments.fonts else None
    if listed is not None and listed.is_file():
        rows = [row.split("\t") for row in listed.read_text(encoding="utf-8").splitlines()[1:]]
        lines.append(f"- Fonts, beside those of this package: {', '.join(f'{row[0]} ({row[2]})' for row in rows)}.")
    return lines


def _lines(rows: list[str]) -> str:
    return "\n".join(rows)


def _command(arguments: BaseArguments) -> str:
    """The command line, with what differs from the defaults; folders by their names alone."""
    parts = ["python recipes/pretrain_base.py"]
    for item in fields(arguments):
        if not item.init:
            continue
        value = getattr(arguments, item.name)
        if value != item.default:
            parts.append(f"--{item.name} {Path(value).name if isinstance(value, str) else value}")
    return " ".join(parts)


def _card(figures: dict, progress: Progress, arguments: BaseArguments) -> str:
    machine = figures["machine"]
    rows = [f"| {NAMES.get(name, name)} | {100 * cer:.1f} % |" for name, cer in figures["cer"].items()]
    curve = [
        f"| {record['lines']} | {record['hours']:.1f} | {record['stage']} | "
        + " | ".join(f"{record['cer'].get(name, float('nan')):.3f}" for name in NAMES)
        + " |"
        for record in progress.history[:: max(1, len(progress.history) // 25)]
    ]
    size = f"{figures['parameters'] / 1e6:.1f} million parameters"
    work = f"{progress.step} steps, {progress.lines} lines, {progress.seconds / 3600:.1f} hours on one thread"
    return f"""# A tiny DeepSeek-OCR (v1 architecture) that reads lines of print and handwriting

For demonstrations and tests of dsocr. {size}, trained from random weights on lines of up to 60 characters (real ones up to
84): Latin with French and German accents, and Russian.

- Training: {work} of {machine["device"]}, torch {machine["torch"]}.
- Command of the last part: `{_command(arguments)}`
- Data: lines rendered by `dsocr.lab.base.rendering`, and the real lines named below; the stages are those of
  `dsocr.lab.base.curriculum`. Writers and fonts of `dsocr/lab/base/held_out.json` were never trained on, nor any line of
  stanford1905 or digital_peter.
- An auxiliary CTC reader on the image tokens was trained along and thrown away (`dsocr.lab.base.column_reader`).
- Weights: bf16 safetensors, native layout of transformers, image mode gundam at 1/8 of its sizes.

CER by generation, at most {LINES} lines a set:

| lines | CER |
|---|---|
{_lines(rows)}

The curve (fewer lines a set):

| lines seen | hours | stage | {" | ".join(NAMES)} |
|---|---|---|{"---|" * len(NAMES)}
{_lines(curve)}

## Attribution

Word lists: wordfreq 3.1.1, see `dsocr/lab/words/SOURCE.md`.

{_lines(_attributions(arguments))}
"""
