"""Write a run's report again, or compare several runs.

    python recipes/report.py outputs/my_adapter
    python recipes/report.py outputs/first outputs/second --output_dir outputs/comparison

For one folder, writes report.html and report.md into it; for several,
comparison.html and comparison.md into --output_dir.
"""

import sys

from dsocr.cli.parser import parse_recipe
from dsocr.cli.tools import ReportArguments
from dsocr.common.errors import explained
from dsocr.common.logs import setup_logging
from dsocr.common.machine import prepare_process
from dsocr.report.pages import write_comparison, write_run_report


def main(arguments: ReportArguments) -> None:
    logger = setup_logging(None, is_main=True)
    if len(arguments.runs) == 1:
        logger.info("report in %s", write_run_report(arguments.runs[0]))
    else:
        logger.info("comparison in %s", write_comparison(arguments.runs, arguments.output_dir))


if __name__ == "__main__":
    prepare_process()
    arguments = parse_recipe(ReportArguments, sys.argv[1:], __doc__)
    with explained():
        main(arguments)
