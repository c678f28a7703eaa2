"""Judge a model, with and without its adapter, on transcribed images outside its training set.

    python recipes/evaluate.py --adapter outputs/my_adapter --dataset_name my_test_lines/
    python recipes/evaluate.py --model_name_or_path deepseek-ai/DeepSeek-OCR --dataset_name my_test_lines/ --baseline tesseract

Predictions are appended to --output_dir line by line, so a second start continues. evaluation.json holds CER and WER
with intervals, by script, length and page, the paired difference of adapter and base, confusions and worst lines;
report.html shows them.
"""

import contextlib
import sys
from pathlib import Path

from dsocr.cli.parser import parse_recipe
from dsocr.cli.reading import EvaluateArguments, load_reader_of, reading_options
from dsocr.common.errors import explained
from dsocr.common.logs import Stages, setup_logging
from dsocr.common.machine import describe_machine, prepare_process, warn_about_unused_gpu
from dsocr.data import BadSamples
from dsocr.models.adapters import adapter_fingerprint
from dsocr.reading.baselines import load_baseline
from dsocr.reading.judging import (
    describe_reading,
    judge,
    load_transcribed,
    log_judged,
    read_dataset,
    read_with_baseline,
    write_judged,
)
from dsocr.reading.prediction_file import PredictionFile
from dsocr.report.pages import write_evaluation_report


def main(arguments: EvaluateArguments) -> None:
    output_dir = Path(arguments.output_dir)
    logger = setup_logging(output_dir, is_main=True)
    warn_about_unused_gpu()
    stage = Stages(logger)
    baseline = load_baseline(arguments.baseline) if arguments.baseline else None

    ################
    # Model and data
    ################
    with stage(f"data {arguments.dataset_name}"):
        bad_samples = BadSamples(arguments.on_bad_sample)
        dataset, split = load_transcribed(
            arguments.dataset_name,
            bad_samples,
            split=arguments.dataset_test_split,
            image_column=arguments.image_column,
            text_column=arguments.text_column,
            max_samples=arguments.max_eval_samples,
        )
        logger.info("%d lines; %s", len(dataset), bad_samples.summary())
    with stage(f"model {arguments.model_name_or_path or ''} {arguments.adapter or ''}"):
        reader = load_reader_of(arguments)

    ################
    # Reading
    ################
    options = reading_options(arguments)
    source, settings = describe_reading(arguments.dataset_name, split, dataset, reader, options)
    readers = {}
    with stage("reading with the base model"):
        file = PredictionFile(output_dir / "predictions_base.jsonl", settings)
        with reader.model.disable_adapter() if arguments.adapter else contextlib.nullcontext():
            readers["base"] = read_dataset(reader, dataset, file, options)
    if arguments.adapter:
        with stage("reading with the adapter"):
            fingerprint = {"adapter_fingerprint": adapter_fingerprint(arguments.adapter)}
            file = PredictionFile(output_dir / "predictions.jsonl", settings | fingerprint)
            readers["adapter"] = read_dataset(reader, dataset, file, options)
    if baseline:
        with stage(f"reading with {baseline.name}"):
            file = PredictionFile(output_dir / f"predictions_{baseline.name}.jsonl", source | baseline.to_dict())
            readers[baseline.name] = read_with_baseline(baseline, dataset, file)

    ################
    # Results
    ################
    judged = judge(dataset, readers)
    log_judged(judged)
    fields = {"settings": settings, "adapter": arguments.adapter, "machine": describe_machine()}
    path = write_judged(output_dir, judged, skipped=dict(bad_samples.counts), command=sys.argv, **fields)
    report = write_evaluation_report(output_dir, dataset["image"])
    logger.info("results in %s, report in %s (%d lines)", path, report, len(dataset))


if __name__ == "__main__":
    prepare_process()
    arguments = parse_recipe(EvaluateArguments, sys.argv[1:], __doc__)
    with explained():
        main(arguments)
