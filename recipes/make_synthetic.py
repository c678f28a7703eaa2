"""Write rendered lines, printed or handwritten, as a dataset folder that the training recipes read.

    python recipes/make_synthetic.py outputs/lines --style handwriting --lines 500

The folder holds images/*.png and metadata.jsonl with the columns image, text, script and font.
"""

import argparse
import itertools
import sys

from tqdm.auto import tqdm

from dsocr.data.synthetic import FONTS, LETTERS, generate_lines, write_dataset
from dsocr.environment import prepare_process
from dsocr.failures import explained


def main(arguments: argparse.Namespace) -> None:
    stream = generate_lines(
        arguments.style,
        seed=arguments.seed,
        scripts=tuple(arguments.scripts),
        min_length=arguments.min_length,
        max_length=arguments.max_length,
        size=(arguments.width, arguments.height),
        fonts=tuple(arguments.fonts) if arguments.fonts else None,
    )
    lines = itertools.islice(stream, arguments.lines)
    metadata = write_dataset(arguments.output_dir, tqdm(lines, total=arguments.lines, unit="line", desc="Rendering"))
    print(f"{arguments.lines} lines in {metadata}")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", help="folder to write")
    parser.add_argument("--style", default="handwriting", choices=list(FONTS))
    parser.add_argument("--lines", type=int, default=500, help="number of lines (default 500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scripts", nargs="+", default=list(LETTERS), choices=list(LETTERS))
    parser.add_argument("--fonts", nargs="+", help="some of the style's fonts instead of all")
    parser.add_argument("--min_length", type=int, default=1, help="fewest characters (default 1)")
    parser.add_argument("--max_length", type=int, default=16, help="most characters (default 16)")
    parser.add_argument("--width", type=int, default=240, help="image width in pixels (default 240)")
    parser.add_argument("--height", type=int, default=40, help="image height in pixels (default 40)")
    return parser


if __name__ == "__main__":
    prepare_process()
    parsed = build_parser().parse_args(sys.argv[1:])
    with explained():
        main(parsed)
