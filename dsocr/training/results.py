"""What a run leaves behind in `ocr_results.json`, and its last line."""

import json
import logging
from pathlib import Path
from typing import Any

from dsocr.evaluation import EvaluatedSet
from dsocr.metrics import TextMetrics, normalize


logger = logging.getLogger(__name__)

RESULTS_NAME = "ocr_results.json"
SHOWN_LINES = 5
SHOWN_CHARACTERS = 100


def write_results(output_dir: str | Path, results: dict[str, Any]) -> Path:
    """Write `ocr_results.json` (`eval_results.json` belongs to Trainer); returns its path."""
    path = Path(output_dir) / RESULTS_NAME
    path.write_text(json.dumps(results, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return path


def build_results(
    base: dict[str, EvaluatedSet],
    adapter: dict[str, EvaluatedSet],
    shuffled: EvaluatedSet,
    transferred: EvaluatedSet | str | None = None,
    *,
    held_out: str,
    **fields: Any,
) -> dict[str, Any]:
    """The content of `ocr_results.json`.

    Args:
        base: What the base model read, by name of the set.
        adapter: What the trained model read, by name of the set.
        shuffled: What the trained model read of the held-out set with every line shown another line's image.
        transferred: What an adapter of a 4-bit base read of the held-out set on the full-precision base, or why that was
            not measured; `None` for a base that was not quantised.
        held_out: Name of the set that stands at the top level.
        **fields: Further entries (model, versions, command, ...).
    """
    if transferred is not None:
        measured = isinstance(transferred, EvaluatedSet)
        fields["adapter_on_full_precision"] = transferred.metrics.to_dict() if measured else {"skipped": transferred}
    return {
        "base": base[held_out].metrics.to_dict(),
        "adapter": adapter[held_out].metrics.to_dict(),
        "adapter_shuffled_images": shuffled.metrics.to_dict(),
        "sets": {
            name: {"base": base[name].metrics.to_dict(), "adapter": adapter[name].metrics.to_dict()} for name in base
        },
        **fields,
    }


def summary_line(base: TextMetrics, adapter: TextMetrics, output_dir: str | Path) -> str:
    """`CER 0.612 -> 0.084, WER 0.900 -> 0.210 on 200 held-out lines; adapter in outputs/...`"""
    return (
        f"CER {base.cer:.3f} -> {adapter.cer:.3f}, WER {base.wer:.3f} -> {adapter.wer:.3f} on {adapter.n} held-out "
        f"lines; adapter in {output_dir}"
    )


def log_lines(before: EvaluatedSet, after: EvaluatedSet, count: int = SHOWN_LINES) -> None:
    """Log the first lines as reference / before / after."""
    triples = zip(before.references, before.predictions, after.predictions, strict=True)
    for reference, old, new in list(triples)[:count]:
        for label, text in (("reference", reference), ("before", old), ("after", new)):
            logger.info("%9s  %s", label, normalize(text)[:SHOWN_CHARACTERS])


def log_table(
    before: dict[str, EvaluatedSet],
    after: dict[str, EvaluatedSet],
    shuffled: EvaluatedSet,
    transferred: EvaluatedSet | str | None = None,
) -> None:
    """Log CER before and after for every set, with shuffled images, and on the full-precision base, as a table."""
    logger.info("%-16s %6s  %9s  %9s  %s", "set", "lines", "CER base", "adapter", "95 % interval")
    for name in before:
        old, new = before[name].metrics, after[name].metrics
        logger.info("%-16s %6d  %9.3f  %9.3f  %.3f-%.3f", name, new.n, old.cer, new.cer, new.cer_low, new.cer_high)
    others = {"shuffled images": shuffled, "on 16/32-bit base": transferred}
    for name, read in others.items():
        if isinstance(read, EvaluatedSet):
            rates = read.metrics
            interval = (rates.cer_low, rates.cer_high)
            logger.info("%-16s %6d  %9s  %9.3f  %.3f-%.3f", name, rates.n, "", rates.cer, *interval)
