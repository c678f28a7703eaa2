"""Write a run's report again, or compare several runs.

    python recipes/report.py outputs/my_adapter
    python recipes/report.py outputs/first outputs/second --output_dir outputs/comparison

One folder: report.html and report.md in it. Several: comparison.html and comparison.md in --output_dir.
"""

import argparse

from dsocr.failures import explained
from dsocr.report import write_comparison, write_run_report
from dsocr.run_log import setup_logging


def main(arguments: argparse.Namespace) -> None:
    logger = setup_logging(None, is_main=True)
    if len(arguments.runs) == 1:
        logger.info("report in %s", write_run_report(arguments.runs[0]))
    else:
        logger.info("comparison in %s", write_comparison(arguments.runs, arguments.output_dir))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders")
    parser.add_argument("--output_dir", default="outputs/comparison", help="of several runs; default: %(default)s")
    return parser


if __name__ == "__main__":
    with explained():
        main(build_parser().parse_args())
