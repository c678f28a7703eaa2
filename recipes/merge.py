"""Merge an adapter into its 16-bit base and write a full checkpoint, or write the adapter in upstream's names.

    python recipes/merge.py outputs/my_adapter --output_dir outputs/my_model
    python recipes/merge.py outputs/my_adapter --output_dir outputs/served_adapter --adapter_only

If the base is in upstream's layout (names, shapes and config of the released checkpoint), so is the merged model, and
software for the released checkpoint can load it; --layout native writes transformers' own. Weights are bfloat16.
Merging runs in fp32 and needs about 14 GB of memory for the released models; the result is loaded back and compared
before the recipe reports success.
"""

import sys
from pathlib import Path

import torch

from dsocr.cli.parser import parse_recipe
from dsocr.cli.tools import MergeArguments
from dsocr.common.errors import explained
from dsocr.common.files import load_json
from dsocr.common.logs import Stages, setup_logging
from dsocr.common.machine import prepare_process
from dsocr.common.run_files import RESULTS_NAME
from dsocr.models import load_model
from dsocr.models.adapter_export import export_adapter
from dsocr.models.adapters import find_base
from dsocr.models.checkpoint_export import choose_layout, upload_checkpoint, write_checkpoint
from dsocr.models.loading import local_checkpoint
from dsocr.models.merging import merge_adapter, verify_written
from dsocr.reading.reader import SAMPLE_IMAGE, SAMPLE_TEXT
from dsocr.report.model_card import write_model_card
from dsocr.samples.collator import OcrCollator
from dsocr.samples.processor import OcrProcessor


def main(arguments: MergeArguments) -> None:
    logger = setup_logging(None, is_main=True)
    stage = Stages(logger)
    adapter, output_dir, dtype = Path(arguments.adapter), Path(arguments.output_dir), torch.bfloat16
    name, revision = arguments.model_name_or_path, None
    if name is None:
        name, revision = find_base(adapter)

    ################
    # Model
    ################
    with stage(f"base model {name}"):
        base = local_checkpoint(name, revision)
        processor = OcrProcessor.from_pretrained(adapter)
        model = load_model(str(base), dtype="float32")
    if arguments.adapter_only:
        with stage("adapter in upstream's names"):
            count = export_adapter(model, adapter, output_dir)
        print(f"{count} tensors in upstream's names in {output_dir}", flush=True)
        return
    with stage("merging"):
        probe = dict(OcrCollator(processor)([{"image": str(SAMPLE_IMAGE), "text": SAMPLE_TEXT}]))
        merged = merge_adapter(model, adapter, probe)

    ################
    # Save
    ################
    layout = arguments.layout or choose_layout(base)
    with stage(f"writing {output_dir}, {layout} layout"):
        # Save the processor first: write_checkpoint then overwrites its tokenizer files with the base's, byte for byte.
        processor.save_pretrained(output_dir)
        write_checkpoint(merged, output_dir, base, layout=layout, dtype=dtype)
        results = {"base_model_name_or_path": name, "revision": revision} | processor.to_dict()
        write_model_card(output_dir, results | load_json(adapter / RESULTS_NAME, {}), merged=True)
    with stage("loading it back"):
        difference = verify_written(output_dir, merged, probe, dtype)
        logger.info("every weight came back; rounding to bfloat16 moves logits by at most %.1e", difference)
    if arguments.push_to_hub:
        with stage(f"uploading to {arguments.hub_model_id}"):
            upload_checkpoint(output_dir, arguments.hub_model_id)
    print(f"merged model in {output_dir}", flush=True)


if __name__ == "__main__":
    prepare_process()
    arguments = parse_recipe(MergeArguments, sys.argv[1:], __doc__)
    torch.set_grad_enabled(False)
    with explained():
        main(arguments)
