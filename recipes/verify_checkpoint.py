"""Run this first with released weights: load them strictly, read one line, and print the measurements.

    python recipes/verify_checkpoint.py deepseek-ai/DeepSeek-OCR
    python recipes/verify_checkpoint.py outputs/my_adapter          (finds the adapter's base by itself)

Exit code 0 means: every tensor was found, the sample was read without error, and its loss is below chance.
"""

import sys

from dsocr.cli.parser import parse_recipe
from dsocr.cli.tools import VerifyArguments
from dsocr.common.errors import explained
from dsocr.common.logs import setup_logging
from dsocr.common.machine import prepare_process, warn_about_unused_gpu
from dsocr.reading.verification import verify_checkpoint


def main(arguments: VerifyArguments) -> int:
    setup_logging(None, is_main=True)
    warn_about_unused_gpu()
    report = verify_checkpoint(
        arguments.model,
        revision=arguments.model_revision,
        dtype=arguments.dtype,
        image_mode=arguments.image_mode,
        image=arguments.image,
        text=arguments.text,
    )
    print("\n".join(report.describe()))
    return 0 if report.sound else 1


if __name__ == "__main__":
    prepare_process()
    arguments = parse_recipe(VerifyArguments, sys.argv[1:], __doc__)
    with explained():
        sys.exit(main(arguments))
