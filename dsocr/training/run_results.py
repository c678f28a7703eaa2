"""Everything that a finished training run writes for people: results, pictures, model card, report."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsocr.data import HELD_OUT
from dsocr.data.summary import summarize_data
from dsocr.data.training_sets import TrainingSets
from dsocr.evaluation import EvaluatedSet
from dsocr.model_card import write_model_card
from dsocr.processor import OcrProcessor
from dsocr.report import write_gallery, write_run_report
from dsocr.report.run_folder import DATA_SUMMARY_NAME
from dsocr.training.gallery import draw_examples
from dsocr.training.results import build_results, log_lines, log_table, summary_line, write_results


logger = logging.getLogger(__name__)

TRAIN_SAMPLE = 50


@dataclass(frozen=True)
class Readings:
    """What was read around a training run.

    Attributes:
        before: By the base model, by name of the set.
        after: By the trained model, by name of the set.
        shuffled: By the trained model, of the held-out set with images swapped.
        train_sample: By the trained model, of some lines that it was trained on.
        transferred: See `build_results`.
    """

    before: dict[str, EvaluatedSet]
    after: dict[str, EvaluatedSet]
    shuffled: EvaluatedSet
    train_sample: EvaluatedSet
    transferred: EvaluatedSet | str | None = None


def draw_train_sample(sets: TrainingSets):
    """At most 50 lines of the training set, evenly spread."""
    step = max(1, len(sets.train) // TRAIN_SAMPLE)
    return sets.train.select(range(0, len(sets.train), step)[:TRAIN_SAMPLE])


def write_data_summary(output_dir: str | Path, sets: TrainingSets, processor: OcrProcessor, skipped: dict) -> None:
    """Write `data_summary.json` before training, so that a run that stops has it too."""
    content = {"train_lines": len(sets.train), "held_out_lines": len(sets.held_out), "skipped": dict(skipped)}
    content |= summarize_data(sets.train, processor)
    path = Path(output_dir) / DATA_SUMMARY_NAME
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_run(output_dir: str | Path, sets: TrainingSets, readings: Readings, **fields: Any) -> str:
    """Write `ocr_results.json`, `examples.png`, `gallery/`, `README.md`, `report.html` and `report.md`.

    Args:
        output_dir: Run folder.
        sets: Its datasets.
        readings: What was read.
        **fields: Further entries of the results (model, versions, command, ...).

    Returns:
        The run's last line.
    """
    before, after = readings.before, readings.after
    results = build_results(
        before,
        after,
        readings.shuffled,
        readings.transferred,
        held_out=HELD_OUT,
        train_sample=readings.train_sample.metrics.to_dict(),
        **fields,
    )
    path = write_results(output_dir, results)
    images = sets.held_out["image"]
    draw_examples(output_dir, images, {"before": before[HELD_OUT], "after": after[HELD_OUT]})
    write_gallery(output_dir, images, before[HELD_OUT], after[HELD_OUT])
    data = (
        f"{len(sets.train)} transcribed lines; {len(sets.held_out)} others were held out and read for the table above."
    )
    write_model_card(output_dir, results, data=data)
    log_lines(before[HELD_OUT], after[HELD_OUT])
    log_table(before, after, readings.shuffled, readings.transferred)
    logger.info("results in %s, report in %s", path, write_run_report(output_dir))
    return summary_line(before[HELD_OUT].metrics, after[HELD_OUT].metrics, output_dir)
