"""Turn an export, a table or a folder into one clean dataset folder (images and metadata.jsonl).

    python recipes/prepare_data.py transkribus_export/ --output my_lines/
    python recipes/prepare_data.py label_studio.json --output my_lines/ --marks strip --on_bad_sample skip

Known kinds: PAGE XML (2013, 2019), ALTO 2 to 4, Label Studio's JSON, COCO with transcriptions, `messages` with `images`
as JSON or JSONL, CSV, TSV, JSONL, x.png with x.gt.txt, the imagefolder layout, and Hub datasets; the recipe detects the
kind. Lines are cut by polygon or box. The source stays unchanged. Unusable entries are listed in skipped_samples.json.
"""

import sys

from dsocr.cli.parser import parse_recipe
from dsocr.cli.tools import PrepareArguments
from dsocr.common.errors import explained
from dsocr.common.logs import setup_logging
from dsocr.common.machine import prepare_process
from dsocr.data import BadSamples
from dsocr.data.importers.preparing import PrepareOptions, prepare_dataset


def main(arguments: PrepareArguments) -> None:
    setup_logging(None, is_main=True)
    count = prepare_dataset(
        arguments.source,
        arguments.output,
        PrepareOptions(level=arguments.level, marks=arguments.marks, margin=arguments.margin),
        BadSamples(arguments.on_bad_sample),
        image_column=arguments.image_column,
        text_column=arguments.text_column,
        encoding=arguments.encoding,
    )
    print(f"{count} samples; train with --dataset_name {arguments.output}", flush=True)


if __name__ == "__main__":
    prepare_process()
    arguments = parse_recipe(PrepareArguments, sys.argv[1:], __doc__)
    with explained():
        main(arguments)
