"""Measure what loading and a training step cost in bf16, in 4 bit as others do it, and in 4 bit here.

    python recipes/measure_memory.py --size full --output_dir outputs/memory --readme README.md

Random weights in the released shapes (nothing is downloaded; 7 GB on disk), on the GPU if there is one, else on the CPU.
Each precision runs in a process of its own. Writes memory_cpu.json or memory_gpu.json to --results and, with --readme,
fills the table in that file. --size tiny tries it in a minute.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch
from tqdm.auto import tqdm

from dsocr.common.errors import explained
from dsocr.common.logs import setup_logging
from dsocr.common.machine import describe_machine, prepare_process
from dsocr.lab.memory import VARIANTS, run_in_process
from dsocr.lab.memory_table import results_path, update_readme
from dsocr.lab.random_models import write_random_checkpoint
from dsocr.lab.tiny import PATCH_SIZE, SIZE_DIVISOR, build_tiny_model
from dsocr.models.config import released_config
from dsocr.samples.geometry import image_geometry


def main(arguments: argparse.Namespace) -> None:
    logger = setup_logging(arguments.output_dir, is_main=True)
    tiny = arguments.size == "tiny"
    config = build_tiny_model(arguments.version)[0].config if tiny else released_config(arguments.version)
    sizes = {"size_divisor": SIZE_DIVISOR, "patch_size": PATCH_SIZE} if tiny else {}
    geometry = image_geometry(arguments.version, arguments.image_mode, **sizes)
    logger.info("writing random weights ...")
    checkpoint = write_random_checkpoint(config, Path(arguments.output_dir) / f"{arguments.version}_{arguments.size}")
    step = {"batch_size": arguments.batch_size, "answer_tokens": arguments.answer_tokens, "steps": arguments.steps}
    rows = {}
    for variant in tqdm(arguments.variants, desc="Measuring"):
        task = {"folder": str(checkpoint), "variant": variant, "geometry": dataclasses.asdict(geometry), "step": step}
        task["card_gib"] = arguments.card_gib
        rows[variant] = run_in_process(task) | run_in_process({"variant": variant})
        logger.info("%s: %s", VARIANTS[variant], rows[variant])
    machine = describe_machine()
    described = (
        f"{arguments.version} {arguments.size} size, random weights, image mode {arguments.image_mode}, batch "
        f"{arguments.batch_size}, {arguments.answer_tokens} answer tokens, LoRA r 16, checkpointing, median of "
        f"{arguments.steps} steps"
    )
    hardware = f"{machine['device']}, torch {machine['torch']}, bitsandbytes {machine['bitsandbytes']}"
    device = "gpu" if torch.cuda.is_available() else "cpu"
    path = results_path(arguments.results or arguments.output_dir, device)
    content = {"hardware": hardware, "step": described, "machine": machine, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    logger.info("results in %s", path)
    if arguments.readme:
        update_readme(arguments.readme, path.parent)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="full", choices=["tiny", "full"], help="released shapes, or the tiny model's")
    parser.add_argument("--version", default="v1", choices=["v1", "v2"])
    parser.add_argument("--image_mode", default="base", help="default: %(default)s")
    parser.add_argument("--batch_size", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--answer_tokens", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one that is not; default: %(default)s")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--card_gib", type=float, help="on a GPU: allow no more memory than such a card would have")
    parser.add_argument("--output_dir", default="outputs/memory", help="random weights and log; default: %(default)s")
    parser.add_argument("--results", help="folder of memory_<device>.json; default: --output_dir")
    parser.add_argument("--readme", help="a Markdown file whose memory table is to be filled")
    return parser


if __name__ == "__main__":
    prepare_process()
    with explained():
        main(build_parser().parse_args())
