"""Measure the memory of loading and of a training step: in bf16, in 4 bit as bitsandbytes does it, and in 4 bit here.

    python recipes/measure_memory.py --size tiny    # a trial of a minute
    python recipes/measure_memory.py --docs docs

The model has random weights in the released shapes (nothing is downloaded; 7 GB on disk) and runs on the GPU if there is
one, else on the CPU. Each precision is measured in a process of its own. The results go to memory_cpu.json or
memory_gpu.json in --output_dir; with --docs they go to that folder, whose memory.md shows them. docs/memory.md explains
the columns.
"""

import sys
from pathlib import Path

import torch

from dsocr.cli.parser import parse_recipe
from dsocr.common.errors import explained
from dsocr.common.logs import Stages, setup_logging
from dsocr.common.machine import describe_machine, prepare_process
from dsocr.lab.arguments import MemoryArguments
from dsocr.lab.memory import IMAGE_MODE, PRECISIONS, STEPS, measure_in_process, memory_step
from dsocr.lab.random_models import sized_config, sized_processor, write_random_checkpoint
from dsocr.lab.tables import describe_memory, fill_page, save_result


def main(arguments: MemoryArguments) -> None:
    logger = setup_logging(arguments.output_dir, is_main=True)
    stage = Stages(logger)
    if arguments.docs:
        # Filled now too, so that a folder without the page is refused before the measuring and not after it.
        fill_page(arguments.docs, "memory")

    ################
    # Model
    ################
    options = memory_step(sized_processor(arguments.size, arguments.version, IMAGE_MODE).geometry)
    with stage("writing random weights"):
        folder = Path(arguments.output_dir) / f"{arguments.version}_{arguments.size}"
        write_random_checkpoint(sized_config(arguments.size, arguments.version), torch.bfloat16, folder)

    ################
    # Precisions
    ################
    rows = {}
    for name in PRECISIONS:
        with stage(PRECISIONS[name].title):
            rows[name] = measure_in_process(name, folder, options, arguments.card_gib)
        logger.info("%s: %s", PRECISIONS[name].title, rows[name])

    ################
    # Results
    ################
    machine = describe_machine()
    result = {
        "hardware": f"{machine['device']}, torch {machine['torch']}, bitsandbytes {machine['bitsandbytes']}",
        "machine": machine,
        "step": options.to_dict() | {"size": arguments.size, "repeats": STEPS},
        "rows": rows,
    }
    device = "gpu" if torch.cuda.is_available() else "cpu"
    print(describe_memory({device: result}))
    logger.info("results in %s", save_result(arguments.docs or arguments.output_dir, "memory", result))
    if arguments.docs:
        logger.info("tables in %s", fill_page(arguments.docs, "memory"))


if __name__ == "__main__":
    prepare_process()
    arguments = parse_recipe(MemoryArguments, sys.argv[1:], __doc__)
    with explained():
        main(arguments)
