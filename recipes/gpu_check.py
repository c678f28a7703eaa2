"""The first run on a GPU: measure in ten minutes everything that this project could not measure without one.

    python recipes/gpu_check.py --size tiny                 # a trial of a minute, on any machine
    python recipes/gpu_check.py --size full --docs docs     # on a GPU of 24 GB or more

Random weights in the released shapes are made on the GPU; nothing is downloaded. Every step runs in a process of its
own, so one that fails, hangs or runs out of memory leaves its reason and the others go on. What a device has no means
for is reported as "not on this device". gpu_check.json in --output_dir holds every figure, logs/ what the steps printed;
with --docs the tables of speed.md and memory.md in that folder are filled too. Exit code 0 means that nothing failed.
"""

import sys
from pathlib import Path

from dsocr.cli.parser import parse_recipe
from dsocr.common.errors import explained
from dsocr.common.files import write_json
from dsocr.common.logs import setup_logging
from dsocr.common.machine import describe_machine, prepare_process
from dsocr.lab.arguments import GpuCheckArguments
from dsocr.lab.gpu_check.report import describe_check, fill_docs, is_complete, summarize
from dsocr.lab.gpu_check.setup import choose_setup
from dsocr.lab.gpu_check.steps import StepResult, run_steps
from dsocr.lab.tables import fill_page


PRESETS = Path(__file__).resolve().parent / "configs"


def main(arguments: GpuCheckArguments) -> int:
    logger = setup_logging(arguments.output_dir, is_main=True)

    ################
    # Setup
    ################
    setup = choose_setup(arguments.size, arguments.version, arguments.output_dir, PRESETS)
    if arguments.docs:
        for kind in ("speed", "memory"):
            # Filled now too, so that a folder without the pages is refused before the measuring and not after it.
            fill_page(arguments.docs, kind)

    ################
    # Steps
    ################
    path = Path(arguments.output_dir) / "gpu_check.json"

    def keep(steps: dict[str, StepResult]) -> None:
        # After every step, so that a machine that goes away leaves what it measured. No summary yet: it asks the GPU,
        # and this process must hold none of its memory while the steps measure it.
        write_json(path, {"steps": {name: step.to_dict() for name, step in steps.items()}})

    steps = run_steps(arguments.steps, setup, 60 * arguments.max_minutes, keep)

    ################
    # Results
    ################
    result = summarize(setup, describe_machine(), steps)
    write_json(path, result)
    print("\n".join(describe_check(result)))
    logger.info("figures in %s", path)
    if arguments.docs:
        logger.info("tables in %s", ", ".join(str(page) for page in fill_docs(arguments.docs, result)))
    return 0 if is_complete(result) else 1


if __name__ == "__main__":
    prepare_process()
    arguments = parse_recipe(GpuCheckArguments, sys.argv[1:], __doc__)
    with explained():
        sys.exit(main(arguments))
