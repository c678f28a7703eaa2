"""The first thing to run with released weights: load them strictly, read one line, and print what was measured.

    python recipes/verify_checkpoint.py deepseek-ai/DeepSeek-OCR
    python recipes/verify_checkpoint.py outputs/my_adapter          (the adapter's base is found by itself)

Exit code 0 means that every tensor was found, the shipped sample was read without error and its loss is below chance.
"""

import argparse
import sys

from dsocr.environment import prepare_process, warn_about_unused_gpu
from dsocr.failures import explained
from dsocr.run_log import setup_logging
from dsocr.verification import verify_checkpoint


def main(arguments: argparse.Namespace) -> int:
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
    for line in report.lines():
        print(line)
    return 0 if report.sound else 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hub id, checkpoint folder or adapter folder")
    parser.add_argument("--model_revision", help="branch, tag or commit of a Hub id")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float16", "float32"])
    parser.add_argument("--image_mode", help="tiny, small, base, large or gundam; default: the saved one, or gundam")
    parser.add_argument("--image", help="an image of one line instead of the shipped sample; needs --text")
    parser.add_argument("--text", help="what the line says")
    return parser


if __name__ == "__main__":
    prepare_process()
    with explained():
        sys.exit(main(build_parser().parse_args()))
