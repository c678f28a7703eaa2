"""Run this first with released weights: one screen says whether this machine will train them.

    python recipes/verify_checkpoint.py deepseek-ai/DeepSeek-OCR
    python recipes/verify_checkpoint.py outputs/my_adapter          (finds the adapter's base by itself)

It shows the files with their digests, tensors that are missing or too many, the ids of the control tokens, the first
loss, a line read with and without autocast, memory, the 16-bit type of this machine, the way of the routed experts, and
the lines per second to expect. Exit code 0 means that nothing stands against training.
"""

import logging
import sys

from dsocr.cli.parser import parse_recipe
from dsocr.cli.tools import VerifyArguments
from dsocr.common.errors import explained
from dsocr.common.logs import setup_logging
from dsocr.common.machine import prepare_process
from dsocr.lab.verification.checking import verify_checkpoint


def main(arguments: VerifyArguments) -> int:
    setup_logging(None, is_main=True)
    # transformers lists missing tensors too, and would put its table in the middle of the report.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    report = verify_checkpoint(
        arguments.model,
        revision=arguments.model_revision,
        dtype=arguments.dtype,
        image_mode=arguments.image_mode,
        image=arguments.image,
        text=arguments.text,
        use_cpu=arguments.use_cpu,
    )
    print("\n".join(report.describe()))
    return 0 if report.sound else 1


if __name__ == "__main__":
    prepare_process()
    arguments = parse_recipe(VerifyArguments, sys.argv[1:], __doc__)
    with explained():
        sys.exit(main(arguments))
