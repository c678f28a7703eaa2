"""Read images, folders and PDF files.

    python recipes/transcribe.py --adapter outputs/my_adapter --inputs scans/ --format jsonl --output scans.jsonl
    python recipes/transcribe.py --adapter outputs/my_adapter --inputs 'pages/*.jpg' --segment --review review.html

Without --segment each image is read whole (a line, or a page with a model trained on pages). --segment first finds the
lines of a page. --review writes each text beside its image, least confident first, for correction and training. A file
that cannot be opened is reported, the other files are read, and the exit code is 1; the names of such files are also
written beside the output, into a file that ends in skipped_samples.json.
"""

import sys

from dsocr.cli.parser import parse_recipe
from dsocr.cli.reading import TranscribeArguments, load_reader_of, reading_options
from dsocr.common.errors import explained
from dsocr.common.logs import setup_logging
from dsocr.common.machine import prepare_process, warn_about_unused_gpu
from dsocr.data import BadSamples
from dsocr.reading.page_inputs import list_files, open_pages
from dsocr.reading.page_lines import load_detector
from dsocr.reading.transcript_files import name_skipped, open_writer
from dsocr.reading.transcription import transcribe_pages
from dsocr.report.review import ReviewWriter


def main(arguments: TranscribeArguments) -> int:
    logger = setup_logging(None, is_main=True, stream=sys.stderr)
    warn_about_unused_gpu()
    files = list_files(arguments.inputs)
    detect = load_detector() if arguments.segment else None
    review = ReviewWriter(arguments.review) if arguments.review else None
    reader = load_reader_of(arguments)
    writer = open_writer(arguments.format, arguments.output, with_names=len(files) > 1)
    bad = BadSamples("skip")
    pages, lines, complete = 0, 0, False
    try:
        inputs = open_pages(files, dpi=arguments.dpi)
        for page in transcribe_pages(reader, inputs, reading_options(arguments), detect=detect):
            pages, lines = pages + 1, lines + len(page.lines)
            for reason, message in page.problems:
                bad.add(reason, page.name, message)
                logger.error("%s", message)
            writer.write(page)
            if review:
                review.add(page)
        complete = True
    finally:
        # Also after Ctrl-C: keep the pages already read, in a file named .part.
        writer.close(complete=complete)
        if review:
            logger.info("to be corrected: %s", ", ".join(map(str, review.close())))
    logger.info("%d lines of %d images read, %s", lines, pages, bad.summary())
    if arguments.output and bad.counts:
        bad.write(name_skipped(arguments.output))
    return 1 if bad.counts else 0


if __name__ == "__main__":
    prepare_process()
    arguments = parse_recipe(TranscribeArguments, sys.argv[1:], __doc__)
    with explained():
        sys.exit(main(arguments))
