"""Turn an export, a table or a folder into one clean dataset folder (images and metadata.jsonl).

    python recipes/prepare_data.py transkribus_export/ --output my_lines/
    python recipes/prepare_data.py label_studio.json --output my_lines/ --marks strip --on_bad_sample skip

Known: PAGE XML (2013, 2019), ALTO 2 to 4, Label Studio's JSON, COCO with transcriptions, `messages` with `images` as JSON or
JSONL, CSV, TSV, JSONL, x.png with x.gt.txt, the imagefolder layout, and Hub datasets; which one it is, is found by looking.
Lines are cut by polygon or box. The source is only read. What cannot be used is listed in skipped_samples.json.
"""

import argparse

from dsocr.data import BadSamples
from dsocr.data.marks import POLICIES
from dsocr.data.preparing import LEVELS, PrepareOptions, prepare_dataset
from dsocr.failures import explained
from dsocr.run_log import setup_logging


def main(arguments: argparse.Namespace) -> None:
    setup_logging(None, is_main=True)
    options = PrepareOptions(level=arguments.level, marks=arguments.marks, margin=arguments.margin)
    columns = {"image_column": arguments.image_column, "text_column": arguments.text_column}
    columns["encoding"] = arguments.encoding
    count = prepare_dataset(arguments.source, arguments.output, options, BadSamples(arguments.on_bad_sample), **columns)
    print(f"{count} samples; train with --dataset_name {arguments.output}", flush=True)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="file, folder or Hub dataset id")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--level", default="line", choices=LEVELS, help="cut lines, or take whole pages")
    parser.add_argument("--marks", default="keep", choices=POLICIES, help="editorial marks such as [?] and <unclear>")
    parser.add_argument("--margin", type=float, default=0.0, help="around a cut line, as a share of its height")
    parser.add_argument("--on_bad_sample", default="raise", choices=["raise", "skip"])
    parser.add_argument("--encoding", help="of a table that is neither UTF-8 nor UTF-16: cp1251, cp1252, ...")
    parser.add_argument("--image_column", help="of a table")
    parser.add_argument("--text_column", help="of a table")
    return parser


if __name__ == "__main__":
    with explained():
        main(build_parser().parse_args())
