"""Measure how fast training and reading are on this machine: the plain path, each lever alone, all levers together.

    python recipes/benchmark.py                     # a minute on any machine
    python recipes/benchmark.py --size mid --parts training reading growth loading --docs docs

The models have random weights and are made on the spot, on the GPU if there is one, else on the CPU; nothing is
downloaded. Every round measures every path once, so that a machine that slows down slows them all; ratios are medians
over the rounds. The results go to speed_cpu.json or speed_gpu.json in --output_dir; with --docs they go to that folder,
whose speed.md shows them. docs/speed.md explains the columns.
"""

import gc
import sys
from pathlib import Path

import torch

from dsocr.cli.parser import parse_recipe
from dsocr.common.errors import explained
from dsocr.common.logs import Stages, setup_logging
from dsocr.common.machine import describe_machine, prepare_process
from dsocr.lab.arguments import BenchmarkArguments
from dsocr.lab.cutting_speed import measure_cutting
from dsocr.lab.expert_speed import measure_experts
from dsocr.lab.flops import measure_matrix_rate
from dsocr.lab.parts import measure_data, measure_loading, measure_reading
from dsocr.lab.random_models import build_random_model, sized_config, sized_processor, write_random_checkpoint
from dsocr.lab.tables import describe_speed, fill_page, save_result
from dsocr.lab.training_speed import IMAGE_MODE, benchmark_step, measure_growth, measure_training
from dsocr.lab.training_step import TrainingStep


def main(arguments: BenchmarkArguments) -> None:
    logger = setup_logging(arguments.output_dir, is_main=True)
    stage = Stages(logger)
    if arguments.docs:
        # Filled now too, so that a folder without the page is refused before the measuring and not after it.
        fill_page(arguments.docs, "speed")

    ################
    # Model
    ################
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = describe_machine()
    config = sized_config(arguments.size, arguments.version)
    processor = sized_processor(arguments.size, arguments.version, IMAGE_MODE)
    options = benchmark_step(processor.geometry, arguments.size, device)
    result = {
        "hardware": f"{machine['device']}, torch {machine['torch']}, transformers {machine['transformers']}",
        "machine": machine,
        "step": options.to_dict() | {"size": arguments.size, "repeats": arguments.repeats},
    }

    ################
    # Training
    ################
    if {"training", "growth"} & set(arguments.parts):
        with stage(f"building the {arguments.size} model"):
            step = TrainingStep(build_random_model(config, options.dtype, device), options)
        if "training" in arguments.parts:
            with stage("training"):
                rate = measure_matrix_rate(device, options.dtype)
                logger.info("matrix rate of this device in %s: %.4g TFLOP/s", options.dtype, rate / 1e12)
                result["matrix_rate"] = rate
                result["data"] = measure_data(processor, options.dtype)
                result["training"] = measure_training(step, arguments.repeats, rate)
        if "growth" in arguments.parts:
            with stage("growth"):
                tiled = sized_processor(arguments.size, arguments.version, "gundam").geometry
                result["growth"] = measure_growth(step, tiled)
        # The model and its hooks name one another; at full size a second model might not fit beside it.
        del step
        gc.collect()

    ################
    # Reading, loading, cutting, experts
    ################
    if "reading" in arguments.parts:
        with stage("reading"):
            model = build_random_model(config, options.dtype, device)
            result["reading"] = measure_reading(model, options, arguments.repeats)
            del model
            gc.collect()
    if "loading" in arguments.parts:
        with stage("loading"):
            folder = Path(arguments.output_dir) / f"{arguments.version}_{arguments.size}"
            result["loading"] = measure_loading(write_random_checkpoint(config, options.dtype, folder))

    if "cutting" in arguments.parts:
        with stage("cutting"):
            result["cutting"] = measure_cutting(arguments.repeats)
    if "experts" in arguments.parts:
        with stage("experts"):
            result["experts"] = measure_experts(arguments.repeats)

    ################
    # Results
    ################
    print(describe_speed(result))
    logger.info("results in %s", save_result(arguments.docs or arguments.output_dir, "speed", result))
    if arguments.docs:
        logger.info("tables in %s", fill_page(arguments.docs, "speed"))


if __name__ == "__main__":
    prepare_process()
    arguments = parse_recipe(BenchmarkArguments, sys.argv[1:], __doc__)
    with explained():
        main(arguments)
