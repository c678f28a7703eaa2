"""Write the results of a finished training run: figures, pictures, model card, report, and the last line."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsocr.common.files import write_json
from dsocr.common.run_files import DATA_SUMMARY_NAME, EXAMPLES_NAME, RESULTS_NAME
from dsocr.data.texts import normalize
from dsocr.data.training_sets import HELD_OUT, TrainingSets
from dsocr.reading.evaluation import EvaluatedSet
from dsocr.reading.metrics import TextMetrics
from dsocr.report.model_card import write_model_card
from dsocr.report.pages import write_run_report
from dsocr.report.pictures import draw_examples, write_gallery
from dsocr.samples.lengths import summarize_data
from dsocr.samples.processor import OcrProcessor


logger = logging.getLogger(__name__)

_SHOWN_LINES, _SHOWN_CHARACTERS = 5, 100


@dataclass(frozen=True)
class Readings:
    """Readings before and after a training run.

    Attributes:
        before: From the base model, by name of the set.
        after: From the trained model, by name of the set.
        shuffled: From the trained model on the held-out set, with every line shown another line's image.
        train_sample: From the trained model on some of its training lines.
        transferred: From an adapter of a 4-bit base on the full-precision base, on the held-out set, or the reason for
            skipping this; `None` for a base that was not quantised.
    """

    before: dict[str, EvaluatedSet]
    after: dict[str, EvaluatedSet]
    shuffled: EvaluatedSet
    train_sample: EvaluatedSet
    transferred: EvaluatedSet | str | None = None

    def to_results(self) -> dict[str, Any]:
        """Error rates for `ocr_results.json`: `base`, `adapter`, `adapter_shuffled_images`, `train_sample`, `sets`, and
        `adapter_on_full_precision` after a 4-bit run."""
        results = {
            "base": self.before[HELD_OUT].metrics.to_dict(),
            "adapter": self.after[HELD_OUT].metrics.to_dict(),
            "adapter_shuffled_images": self.shuffled.metrics.to_dict(),
            "train_sample": self.train_sample.metrics.to_dict(),
            "sets": {
                name: {"base": before.metrics.to_dict(), "adapter": self.after[name].metrics.to_dict()}
                for name, before in self.before.items()
            },
        }
        if isinstance(self.transferred, EvaluatedSet):
            results["adapter_on_full_precision"] = self.transferred.metrics.to_dict()
        elif self.transferred is not None:
            results["adapter_on_full_precision"] = {"skipped": self.transferred}
        return results


def write_data_summary(output_dir: str | Path, sets: TrainingSets, processor: OcrProcessor, skipped: dict) -> None:
    """Write `data_summary.json` before training, so that a stopped run has it too."""
    content = {
        "train_lines": len(sets.train) - sets.replayed,
        "held_out_lines": len(sets.held_out),
        "skipped": dict(skipped),
    }
    if sets.replayed:
        content["replay"] = sets.replay_origin
    write_json(Path(output_dir) / DATA_SUMMARY_NAME, content | summarize_data(sets.train, processor))


def write_run(output_dir: str | Path, sets: TrainingSets, readings: Readings, **fields: Any) -> str:
    """Write `ocr_results.json`, `examples.png`, `gallery/`, `README.md`, `report.html` and `report.md`.

    Args:
        output_dir: Run folder.
        sets: Its datasets.
        readings: Readings before and after training.
        **fields: Further entries of the results (model, versions, command, ...).

    Returns:
        The run's last line.
    """
    folder = Path(output_dir)
    before, after = readings.before[HELD_OUT], readings.after[HELD_OUT]
    results = readings.to_results() | fields
    # Don't use the name `eval_results.json`: Trainer writes that file.
    path = write_json(folder / RESULTS_NAME, results)
    images = sets.held_out["image"]
    draw_examples(folder / EXAMPLES_NAME, images, {"before": before, "after": after})
    write_gallery(folder, images, before, after)
    data = (
        f"{len(sets.train)} transcribed lines; {len(sets.held_out)} others were held out and read for the table above."
    )
    write_model_card(folder, results, data=data)
    log_examples(before, after)
    log_table(readings)
    logger.info("results in %s, report in %s", path, write_run_report(folder))
    return summary_line(before.metrics, after.metrics, folder)


def summary_line(base: TextMetrics, adapter: TextMetrics, output_dir: str | Path) -> str:
    """Format `CER 0.612 -> 0.084, WER 0.900 -> 0.210 on 200 held-out lines; adapter in outputs/...`"""
    return (
        f"CER {base.cer:.3f} -> {adapter.cer:.3f}, WER {base.wer:.3f} -> {adapter.wer:.3f} on {adapter.n} held-out "
        f"lines; adapter in {output_dir}"
    )


def log_examples(before: EvaluatedSet, after: EvaluatedSet) -> None:
    """Log the first five lines as reference / before / after."""
    triples = zip(before.references, before.predictions, after.predictions, strict=True)
    for reference, old, new in list(triples)[:_SHOWN_LINES]:
        for label, text in (("reference", reference), ("before", old), ("after", new)):
            logger.info("%9s  %s", label, normalize(text)[:_SHOWN_CHARACTERS])


def log_table(readings: Readings) -> None:
    """Log a table of CER before and after for every set, with shuffled images, and on the full-precision base."""
    logger.info("%-16s %6s  %9s  %9s  %s", "set", "lines", "CER base", "adapter", "95 % interval")
    for name, before in readings.before.items():
        old, new = before.metrics, readings.after[name].metrics
        logger.info("%-16s %6d  %9.3f  %9.3f  %.3f-%.3f", name, new.n, old.cer, new.cer, new.cer_low, new.cer_high)
    others = {"shuffled images": readings.shuffled, "on 16/32-bit base": readings.transferred}
    for name, read in others.items():
        if isinstance(read, EvaluatedSet):
            rates = read.metrics
            interval = (rates.cer_low, rates.cer_high)
            logger.info("%-16s %6d  %9s  %9.3f  %.3f-%.3f", name, rates.n, "", rates.cer, *interval)
