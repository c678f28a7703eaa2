"""Render lines, printed or handwritten, into a dataset folder for the training recipes.

    python recipes/make_synthetic.py outputs/lines --style handwriting --lines 500

The folder holds images/*.png and metadata.jsonl with the columns image, text, script and font.
"""

import itertools
import sys

from tqdm.auto import tqdm

from dsocr.cli.parser import parse_recipe
from dsocr.cli.tools import SyntheticArguments
from dsocr.common.errors import explained
from dsocr.common.machine import prepare_process
from dsocr.data.synthetic import generate_lines, write_dataset


def main(arguments: SyntheticArguments) -> None:
    stream = generate_lines(
        arguments.style, seed=arguments.seed, scripts=tuple(arguments.scripts), max_length=arguments.max_length
    )
    lines = itertools.islice(stream, arguments.lines)
    metadata = write_dataset(arguments.output_dir, tqdm(lines, total=arguments.lines, unit="line", desc="Rendering"))
    print(f"{arguments.lines} lines in {metadata}")


if __name__ == "__main__":
    prepare_process()
    arguments = parse_recipe(SyntheticArguments, sys.argv[1:], __doc__)
    with explained():
        main(arguments)
