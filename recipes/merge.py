"""Merge an adapter into its 16-bit base and write a full checkpoint, or write the adapter in upstream's names.

    python recipes/merge.py outputs/my_adapter --output_dir outputs/my_model
    python recipes/merge.py outputs/my_adapter --output_dir outputs/served_adapter --adapter_only

The checkpoint has upstream's own layout (names, shapes and config of the released one) when its base has, so that what
reads the released checkpoint finds what it expects; --layout native writes transformers' own. The sum is made in fp32,
needs about 14 GB of memory for the released models, and is loaded back and compared before the recipe says done.
"""

import argparse
import json
from pathlib import Path

import torch

from dsocr.collator import OcrCollator
from dsocr.environment import prepare_process
from dsocr.failures import explained
from dsocr.model_card import write_model_card
from dsocr.models import load_model
from dsocr.models.adapter_export import export_adapter
from dsocr.models.adapters import find_base
from dsocr.models.checkpoint_export import LAYOUTS, write_checkpoint
from dsocr.models.loading import parse_dtype
from dsocr.models.local_checkpoint import local_checkpoint
from dsocr.models.merging import merge_adapter, verify_written
from dsocr.processor import OcrProcessor
from dsocr.run_log import Stages, setup_logging
from dsocr.training.results import RESULTS_NAME
from dsocr.verification import SAMPLE_IMAGE, SAMPLE_TEXT


def main(arguments: argparse.Namespace) -> None:
    logger = setup_logging(None, is_main=True)
    stage = Stages(logger, 2 if arguments.adapter_only else 4 + arguments.push_to_hub)
    adapter, output_dir = Path(arguments.adapter), Path(arguments.output_dir)
    name, revision = arguments.model_name_or_path, arguments.model_revision
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
    dtype = parse_dtype(arguments.dtype)
    is_upstream = json.loads((base / "config.json").read_text(encoding="utf-8")).get("model_type") == "deepseek_vl_v2"
    layout = arguments.layout or ("upstream" if is_upstream else "native")
    with stage(f"writing {output_dir}, {layout} layout"):
        # First, so that the base's own tokenizer files, byte for byte, are the ones that stay.
        processor.save_pretrained(output_dir)
        write_checkpoint(merged, output_dir, base, layout=layout, dtype=dtype)
        results = {"base_model_name_or_path": name, "revision": revision} | processor.to_dict()
        if (adapter / RESULTS_NAME).is_file():
            results |= json.loads((adapter / RESULTS_NAME).read_text(encoding="utf-8"))
        write_model_card(output_dir, results, merged=True)
    with stage("loading it back"):
        difference = verify_written(output_dir, merged, probe, dtype)
        logger.info("every weight came back; rounding to %s moves logits by at most %.1e", arguments.dtype, difference)
    if arguments.push_to_hub:
        with stage(f"uploading to {arguments.hub_model_id}"):
            from huggingface_hub import HfApi

            api = HfApi()
            api.create_repo(arguments.hub_model_id, private=True, exist_ok=True)
            api.upload_folder(repo_id=arguments.hub_model_id, folder_path=output_dir)
    print(f"merged model in {output_dir}", flush=True)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", help="folder that the training run wrote")
    parser.add_argument("--output_dir", required=True, help="where to write")
    parser.add_argument("--model_name_or_path", help="the 16-bit base; default: the one that the adapter names")
    parser.add_argument("--model_revision", help="branch, tag or commit of a Hub id")
    parser.add_argument("--layout", choices=LAYOUTS, help="default: upstream, if the base is in that layout")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--adapter_only", action="store_true", help="no merging: the adapter in upstream's names")
    parser.add_argument("--push_to_hub", action="store_true", help="upload the folder, as a private repository")
    parser.add_argument("--hub_model_id", help="user/name; needed by --push_to_hub")
    return parser


if __name__ == "__main__":
    prepare_process()
    parser = build_parser()
    arguments = parser.parse_args()
    if arguments.push_to_hub and not arguments.hub_model_id:
        parser.error("--push_to_hub needs --hub_model_id user/name")
    torch.set_grad_enabled(False)
    with explained():
        main(arguments)
