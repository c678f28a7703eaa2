"""The released form of the tiny base model: bf16 safetensors, processor, and a model card with measured figures."""

import itertools
import json
from dataclasses import fields
from pathlib import Path

import torch
from transformers import PreTrainedModel

from dsocr.common.machine import describe_machine
from dsocr.data.synthetic import FONTS, LETTERS, generate_lines
from dsocr.lab.tiny_training import EVALUATION_SEED, PretrainArguments, evaluate_lines, load_runs
from dsocr.models import load_model
from dsocr.samples.processor import OcrProcessor


RELEASE_FOLDER = "release"
OVERALL_LINES, BAND_LINES = 800, 200
LENGTH_BANDS = ((1, 4), (5, 8), (9, 12), (13, 16))


def measure_model(model: PreTrainedModel, processor: OcrProcessor) -> list[dict]:
    """CER by style, and within it by script and length, on lines that no training run has seen; a row each."""
    table = []
    for style in FONTS:
        whole = [(tuple(LETTERS), LENGTH_BANDS[0][0], LENGTH_BANDS[-1][1], OVERALL_LINES)]
        parts = [((script,), *band, BAND_LINES) for script, band in itertools.product(LETTERS, LENGTH_BANDS)]
        for scripts, shortest, longest, count in whole + parts:
            stream = generate_lines(
                style, seed=EVALUATION_SEED + 1, scripts=scripts, min_length=shortest, max_length=longest
            )
            metrics = evaluate_lines(model, processor, list(itertools.islice(stream, count)), progress=True)
            row = {"style": style, "script": " + ".join(scripts), "length": f"{shortest}-{longest}", "lines": count}
            table.append(row | {"cer": metrics.cer, "exact": metrics.exact})
    return table


def write_released_model(
    arguments: PretrainArguments,
    model: PreTrainedModel,
    processor: OcrProcessor,
    history: list[dict],
) -> Path:
    """Write `output_dir/release`: bf16 weights, processor, `figures.json` and a model card; returns the folder.

    The figures are those of the weights as written, loaded back.
    """
    folder = Path(arguments.output_dir) / RELEASE_FOLDER
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    table = measure_model(load_model(str(folder), dtype="float32"), processor)
    figures = {
        "runs": load_runs(arguments.output_dir),
        "machine": describe_machine(),
        "history": history,
        "table": table,
    }
    (folder / "figures.json").write_text(json.dumps(figures, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_card(figures), encoding="utf-8")
    return folder


def _command(arguments: dict) -> str:
    """The command line of a run, with what differs from the defaults."""
    default = {field.name: field.default for field in fields(PretrainArguments)}
    changed = [f"--{name} {value}" for name, value in arguments.items() if value != default[name]]
    return " ".join(["python recipes/pretrain_tiny.py", *changed])


def _card(figures: dict) -> str:
    last, machine = figures["history"][-1], figures["machine"]
    rows = [
        f"| {row['style']} | {row['script']} | {row['length']} | {row['lines']} | {100 * row['cer']:.1f} % | {100 * row['exact']:.0f} % |"
        for row in figures["table"]
    ]
    return "\n".join(
        [
            "# A tiny DeepSeek-OCR (v1 architecture) that reads printed lines",
            "",
            "For demonstrations and tests of dsocr. Trained from random weights on lines of 1 to "
            f"{last['max_length']} characters, rendered from five printed fonts, Latin and Russian,",
            "words mixed with random letters and digits. It has never seen handwriting.",
            "",
            f"- Training: {last['step']} steps, {last['lines']} lines, {last['seconds'] / 60:.0f} minutes on "
            f"{machine['device']}, torch {machine['torch']}.",
            "- Data: `dsocr.data.synthetic`, style `print`; an auxiliary CTC reader on the image tokens was trained along "
            "and thrown away (`dsocr.lab.tiny_training`).",
            *(
                f"- Command, from step {run['first_step']} on: `{_command(run['arguments'])}`"
                for run in figures["runs"]
            ),
            "- Weights: bf16 safetensors, native layout of transformers, image mode gundam at 1/16 of its sizes.",
            "",
            "CER by generation on unseen lines (texts unseen; `handwriting` and `unseen_handwriting` are fonts that the base "
            "was not trained on):",
            "",
            "| style | script | characters | lines | CER | without error |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
