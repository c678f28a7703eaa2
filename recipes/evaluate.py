"""Judge a model, with and without its adapter, on transcribed images it has not been trained on.

    python recipes/evaluate.py --adapter outputs/my_adapter --dataset_name my_test_lines/
    python recipes/evaluate.py --model_name_or_path deepseek-ai/DeepSeek-OCR --dataset_name my_test_lines/ --baseline tesseract

Predictions are appended to --output_dir as they are made, and a second start goes on. evaluation.json holds CER and WER
with intervals, by script, length and page, the paired difference of adapter and base, confusions and worst lines;
report.html shows them.
"""

import contextlib
import sys
from pathlib import Path

from dsocr.data import BadSamples
from dsocr.environment import describe_machine, prepare_process, warn_about_unused_gpu
from dsocr.failures import explained
from dsocr.models.adapters import adapter_fingerprint, base_fingerprint
from dsocr.reading.arguments import EvaluateArguments, generation_options, parse_reading_arguments, reader_options
from dsocr.reading.baselines import load_baseline
from dsocr.reading.judging import (
    fingerprint_dataset,
    judge,
    load_transcribed,
    log_judged,
    read_dataset,
    read_with_baseline,
    write_judged,
)
from dsocr.reading.loading import load_reader
from dsocr.reading.prediction_file import PredictionFile
from dsocr.report import write_evaluation_report
from dsocr.run_log import Stages, setup_logging


def main(arguments: EvaluateArguments) -> None:
    output_dir = Path(arguments.output_dir)
    logger = setup_logging(output_dir, is_main=True)
    warn_about_unused_gpu()
    source = arguments.dataset_name
    read_baseline = load_baseline(arguments.baseline, arguments.baseline_language) if arguments.baseline else None
    stage = Stages(logger, 3 + bool(arguments.adapter) + bool(arguments.baseline))

    ################
    # Data and model
    ################
    with stage(f"data {source}"):
        bad_samples = BadSamples(arguments.on_bad_sample)
        columns = {"image_column": arguments.image_column, "text_column": arguments.text_column}
        options = {"bad_samples": bad_samples, "max_samples": arguments.max_eval_samples, **columns}
        dataset, split = load_transcribed(source, arguments.dataset_test_split, **options)
        logger.info("%d lines; %s", len(dataset), bad_samples.summary())
    with stage(f"model {arguments.model_name_or_path or ''} {arguments.adapter or ''}"):
        options = reader_options(arguments)
        model, processor, name = load_reader(arguments.model_name_or_path, arguments.adapter, **options)

    ################
    # Reading
    ################
    reading = generation_options(arguments)
    identity = {"dataset": str(source), "split": split, "dataset_fingerprint": fingerprint_dataset(dataset)}
    settings = identity | {"model": name, "base_fingerprint": base_fingerprint(model), "dtype": arguments.dtype}
    settings |= processor.to_dict() | {"load_in_4bit": arguments.load_in_4bit}
    settings |= {key: reading[key] for key in ("max_new_tokens", "loop_guard")}
    readers = {}
    with stage("reading with the base model"):
        file = PredictionFile(output_dir / "predictions_base.jsonl", settings)
        with model.disable_adapter() if arguments.adapter else contextlib.nullcontext():
            readers["base"] = read_dataset(model, processor, dataset, file, **reading)
    if arguments.adapter:
        with stage("reading with the adapter"):
            file = PredictionFile(
                output_dir / "predictions.jsonl",
                settings | {"adapter_fingerprint": adapter_fingerprint(arguments.adapter)},
            )
            readers["adapter"] = read_dataset(model, processor, dataset, file, **reading)
    if read_baseline:
        with stage(f"reading with {arguments.baseline}"):
            file = PredictionFile(
                output_dir / f"predictions_{arguments.baseline}.jsonl",
                identity | {"baseline": arguments.baseline, "language": arguments.baseline_language},
            )
            readers[arguments.baseline] = read_with_baseline(read_baseline, dataset, file)

    ################
    # Results
    ################
    judged = judge(dataset, readers)
    log_judged(judged)
    fields = {"settings": settings, "adapter": arguments.adapter, "machine": describe_machine()}
    path = write_judged(output_dir, judged, skipped=dict(bad_samples.counts), command=sys.argv, **fields)
    report = write_evaluation_report(output_dir, dataset["image"])
    best = readers.get("adapter", readers["base"])
    logger.info("results in %s, report in %s (%d lines)", path, report, len(best))


if __name__ == "__main__":
    prepare_process()
    arguments = parse_reading_arguments(sys.argv[1:], EvaluateArguments)
    with explained():
        main(arguments)
