"""Examine a dataset before its faults spoil a run.

    python recipes/check_data.py my_lines/
    python recipes/check_data.py my_lines/ --model_name_or_path deepseek-ai/DeepSeek-OCR --fix my_lines_repaired/

Reports faults of images (unreadable, blank, tiny, repeated), texts (invisible characters, a Latin e in a Russian word,
empty), splits (a page or a picture on both sides) and lengths. With a model it also counts tokens and tiles in every
image mode. Writes doctor.json and doctor.html with thumbnails. --fix writes a repaired copy; the source stays
unchanged. Exits with code 1 when there is an error.
"""

import sys

from dsocr.cli.parser import parse_recipe
from dsocr.cli.tools import CheckArguments
from dsocr.common.errors import explained
from dsocr.common.logs import setup_logging
from dsocr.common.machine import prepare_process
from dsocr.doctor import examine, write_repaired
from dsocr.models.loading import TINY_BASE
from dsocr.samples.processor import OcrProcessor


def main(arguments: CheckArguments) -> int:
    logger = setup_logging(None, is_main=True)
    if arguments.model_name_or_path is None:
        logger.info("no --model_name_or_path: tokens and tiles are counted for the built-in tiny model")
    found = examine(
        arguments.source,
        OcrProcessor.from_pretrained(arguments.model_name_or_path or str(TINY_BASE)),
        max_new_tokens=arguments.max_new_tokens,
        image_column=arguments.image_column,
        text_column=arguments.text_column,
    )
    print("\n".join(found.describe()))
    logger.info("with pictures: %s", found.write(arguments.output_dir))
    if arguments.fix:
        print(f"{write_repaired(found, arguments.fix)} of {found.row_count} rows repaired into {arguments.fix}")
    return 0 if found.is_sound else 1


if __name__ == "__main__":
    prepare_process()
    arguments = parse_recipe(CheckArguments, sys.argv[1:], __doc__)
    with explained():
        sys.exit(main(arguments))
