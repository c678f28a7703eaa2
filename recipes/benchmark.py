"""Measure how fast training and reading are here: the plain path, each lever alone, all together.

    python recipes/benchmark.py                     # a minute on any machine
    python recipes/benchmark.py --size full --reading --results docs --readme README.md

Random weights in the chosen shapes, made on the spot on the GPU if there is one, else on the CPU; nothing is downloaded.
Every variant is measured once in every round, so that a machine that slows down slows them all; ratios are medians over
the rounds. --growth grows batch, tiles and text one at a time; --loading writes the checkpoint and loads it. Writes
speed_cpu.json or speed_gpu.json to --results and, with --readme, puts them into that file.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from dsocr.common.errors import explained
from dsocr.common.logs import setup_logging
from dsocr.common.machine import describe_machine, prepare_process
from dsocr.lab.data_speed import measure_data
from dsocr.lab.flops import measure_matrix_rate
from dsocr.lab.growth import measure_growth
from dsocr.lab.levers import LEVERS
from dsocr.lab.loading_speed import measure_loading
from dsocr.lab.random_models import write_random_checkpoint
from dsocr.lab.reading_speed import measure_reading
from dsocr.lab.shapes import SIZES, benchmark_config, benchmark_geometry, image_with_tiles
from dsocr.lab.tables import describe, results_path, update_readme, write_result
from dsocr.lab.training_speed import TrainingOptions, measure_training
from dsocr.models.loading import parse_dtype


def main(arguments: argparse.Namespace) -> None:
    logger = setup_logging(arguments.output_dir, is_main=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = parse_dtype(arguments.dtype)
    config = benchmark_config(arguments.size, arguments.version)
    geometry = benchmark_geometry(arguments.size, config, arguments.image_mode)
    options = TrainingOptions(
        config,
        geometry,
        image_with_tiles(geometry, arguments.tiles),
        batch_size=arguments.batch_size,
        answer_tokens=arguments.answer_tokens,
        dtype=dtype,
        load_in_4bit=arguments.load_in_4bit,
        checkpointing=arguments.activation_checkpointing,
        levers=tuple(arguments.levers),
        repeats=arguments.repeats,
    )
    rate = measure_matrix_rate(device, dtype)
    logger.info("matrix rate of this device in %s: %.4g TFLOP/s", arguments.dtype, rate / 1e12)
    machine = describe_machine()
    names = (
        "version",
        "size",
        "dtype",
        "image_mode",
        "tiles",
        "batch_size",
        "answer_tokens",
        "repeats",
        "load_in_4bit",
    )
    step = {name: getattr(arguments, name) for name in names} | {"checkpointing": arguments.activation_checkpointing}
    result = {
        "hardware": f"{machine['device']}, torch {machine['torch']}, transformers {machine['transformers']}",
        "machine": machine,
        "step": step,
        "matrix_rate": rate,
        "data": measure_data(options),
        "training": measure_training(options, device, matrix_rate=rate),
    }
    if arguments.reading:
        result["reading"] = measure_reading(options, device, new_tokens=arguments.new_tokens)
    if arguments.growth:
        result["growth"] = measure_growth(replace(options, repeats=1), device, matrix_rate=rate)
    if arguments.loading:
        folder = Path(arguments.output_dir) / f"{arguments.version}_{arguments.size}"
        result["loading"] = measure_loading(write_random_checkpoint(config, folder, dtype=dtype))
    kind = "gpu" if device.type == "cuda" else "cpu"
    folder = arguments.results or arguments.output_dir
    write_result(folder, kind, result)
    print("\n".join(describe(result)))
    logger.info("results in %s", results_path(folder, kind))
    if arguments.readme:
        update_readme(arguments.readme, folder)


def build_parser() -> argparse.ArgumentParser:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", default="tiny", choices=SIZES, help="tiny, mid (released widths, four layers) or full; default: tiny")
    add("--version", default="v1", choices=["v1", "v2"])
    add("--image_mode", default="base", help="default: %(default)s")
    add("--tiles", type=int, default=0, help="tiles an image, in image mode gundam; default: %(default)s")
    add("--batch_size", type=int, default=2, help="default: %(default)s")
    add("--answer_tokens", type=int, default=200, help="default: %(default)s")
    add("--dtype", default="bfloat16" if on_gpu else "float32", help="of the weights; default: %(default)s")
    add("--load_in_4bit", action="store_true", help="pack language model and experts")
    add("--activation_checkpointing", action=argparse.BooleanOptionalAction, default=on_gpu, help="default: on a GPU")
    add("--levers", nargs="*", default=list(LEVERS), choices=list(LEVERS), help="default: all")
    add("--repeats", type=int, default=5, help="timed rounds, after one that is not; default: %(default)s")
    add("--reading", action="store_true", help="measure generation too")
    add("--new_tokens", type=int, default=60, help="of every line that is read; default: %(default)s")
    add("--growth", action="store_true", help="grow batch, tiles and answer one at a time")
    add("--loading", action="store_true", help="write the checkpoint (full size: 7 GB) and load it")
    add("--output_dir", default="outputs/benchmark", help="log and checkpoint; default: %(default)s")
    add("--results", help="folder of speed_<device>.json; default: --output_dir")
    add("--readme", help="a Markdown file whose speed table is to be filled")
    return parser


if __name__ == "__main__":
    prepare_process()
    with explained():
        main(build_parser().parse_args())
