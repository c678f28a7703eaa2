"""Train the built-in base from random weights to read lines of print and handwriting in Latin letters and Russian.

    python recipes/pretrain_base.py --output_dir outputs/base --fonts FOLDER --real_lines FOLDER

Goes on until it is stopped. `--resume_from outputs/base` goes on to the bit; `--resume_from outputs/base --output_dir
outputs/base_decayed --decay_steps 1500` ends a run: the rate falls, then the released form gets its card. With
`--max_chunks 0` the card is written for the state as it is.
"""

import sys

from dsocr.cli.parser import parse_recipe
from dsocr.common.errors import explained
from dsocr.common.logs import setup_logging
from dsocr.common.machine import prepare_process
from dsocr.lab.base.release import write_release
from dsocr.lab.base.run import BaseArguments
from dsocr.lab.base.training import pretrain_base


def main(arguments: BaseArguments) -> None:
    setup_logging(arguments.output_dir, is_main=True)
    progress = pretrain_base(arguments).progress
    write_release(arguments, progress)


if __name__ == "__main__":
    prepare_process()
    arguments = parse_recipe(BaseArguments, sys.argv[1:], __doc__)
    with explained():
        main(arguments)
