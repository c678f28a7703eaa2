"""Examine a dataset before a run is lost in it.

    python recipes/check_data.py my_lines/
    python recipes/check_data.py my_lines/ --model_name_or_path deepseek-ai/DeepSeek-OCR --fix my_lines_repaired/

Says what is wrong with images (unreadable, blank, tiny, there twice), texts (invisible characters, a Latin e in a Russian word,
empty), splits (a page or a picture on both sides) and lengths. With a model's tokenizer also tokens and tiles in every
image mode. Writes doctor.json and doctor.html with thumbnails. --fix writes a repaired copy; the source is only read.
Exit code 1 when there is an error.
"""

import argparse
import sys

from dsocr.demo import TINY_BASE
from dsocr.doctor import examine, write_repaired
from dsocr.failures import explained
from dsocr.processor import OcrProcessor
from dsocr.run_log import setup_logging


def main(arguments: argparse.Namespace) -> int:
    logger = setup_logging(None, is_main=True)
    name = arguments.model_name_or_path or str(TINY_BASE)
    if arguments.model_name_or_path is None:
        logger.info("no --model_name_or_path: tokens and tiles are counted for the built-in tiny model")
    found = examine(
        arguments.source,
        OcrProcessor.from_pretrained(name),
        max_new_tokens=arguments.max_new_tokens,
        image_column=arguments.image_column,
        text_column=arguments.text_column,
    )
    for line in found.lines():
        print(line)
    logger.info("with pictures: %s", found.write(arguments.output_dir))
    if arguments.fix:
        print(f"{write_repaired(found, arguments.fix)} of {len(found.rows)} rows repaired into {arguments.fix}")
    return 0 if found.is_sound else 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a metadata file, or a folder with one")
    parser.add_argument("--model_name_or_path", help="whose tokenizer and image modes count; default: the tiny model's")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="of the run to come; default: %(default)s")
    parser.add_argument("--output_dir", default="outputs/doctor", help="of doctor.json and doctor.html")
    parser.add_argument("--fix", metavar="FOLDER", help="write a repaired copy there")
    parser.add_argument("--image_column", help="when it has an unusual name")
    parser.add_argument("--text_column", help="when it has an unusual name")
    return parser


if __name__ == "__main__":
    with explained():
        sys.exit(main(build_parser().parse_args()))
