"""Write the README.md of an adapter or a merged model, with metadata for the Hub."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dsocr.common.files import write_text
from dsocr.common.run_files import MODEL_CARD_NAME
from dsocr.models.config import RELEASED
from dsocr.report.pages import show_in_markdown


_LOAD_ADAPTER = """import dsocr

model = dsocr.load_model({base!r}, dtype="bfloat16")
model = dsocr.load_adapter(model, {folder!r})
processor = dsocr.OcrProcessor.from_pretrained({folder!r})
"""
_LOAD_MERGED = """import dsocr

model = dsocr.load_model({folder!r}, dtype="bfloat16")
processor = dsocr.OcrProcessor.from_pretrained({folder!r})
"""


def _is_hub_id(name: str) -> bool:
    return name in RELEASED or (name.count("/") == 1 and not Path(name).exists() and not name.startswith((".", "/")))


def _card_data(results: dict[str, Any], title: str, library: str) -> ModelCardData:
    base = results["base_model_name_or_path"]
    rates = results.get("adapter", {})
    evaluated = [
        EvalResult(
            task_type="image-to-text",
            task_name="Handwriting recognition",
            dataset_type="private",
            dataset_name="held-out lines",
            metric_type=name,
            metric_name=name.upper(),
            metric_value=round(rates[name], 4),
        )
        for name in ("cer", "wer")
        if name in rates
    ]
    return ModelCardData(
        model_name=title,
        base_model=base if _is_hub_id(base) else None,
        library_name=library,
        pipeline_tag="image-to-text",
        # The publisher chooses the licence; upstream's own applies in any case.
        license="other",
        license_name="same-as-base-model",
        tags=["ocr", "handwriting", "deepseek-ocr", "dsocr", *(["lora"] if library == "peft" else [])],
        eval_results=evaluated or None,
    )


def _row(name: str, m: dict[str, float]) -> str:
    interval = f"{m['cer_low']:.3f}-{m['cer_high']:.3f}"
    return f"| {name} | {m['n']} | {m['cer']:.3f} | {interval} | {m['wer']:.3f} | {m['exact']:.3f} |"


def _table(results: dict[str, Any]) -> str:
    rows = {
        "base model": results.get("base"),
        "this model": results.get("adapter"),
        "this model, images swapped": results.get("adapter_shuffled_images"),
        "this adapter on the full-precision base": results.get("adapter_on_full_precision"),
    }
    lines = ["| held-out lines | n | CER | 95 % interval | WER | exact |", "|---|---|---|---|---|---|"]
    lines += [_row(name, metrics) for name, metrics in rows.items() if metrics and "cer" in metrics]
    return "\n".join(lines) if len(lines) > 2 else "Not measured."


def write_model_card(folder: str | Path, results: dict[str, Any], *, merged: bool = False, data: str = "") -> Path:
    """Write `README.md`; returns its path.

    Args:
        folder: Folder of the adapter or of the merged model.
        results: Content of `ocr_results.json`; `base_model_name_or_path`, `image_mode` and `prompt` are needed.
        merged: Whether the folder holds a full model.
        data: Description of the training data.
    """
    folder = Path(folder)
    base, title = results["base_model_name_or_path"], folder.resolve().name
    card_data = _card_data(results, title, "transformers" if merged else "peft")
    load = (_LOAD_MERGED if merged else _LOAD_ADAPTER).format(base=base, folder=title)
    kind = "a LoRA adapter merged into" if merged else "a LoRA adapter for"
    revision = results.get("revision")
    text = f"""---
{card_data.to_yaml()}
---

# {show_in_markdown(title)}

This is {kind} {show_in_markdown(base)}{f" (revision {revision})" if revision else ""}, trained with dsocr.

## Error rates

{_table(results)}

CER is the sum of character edits over the sum of reference characters, after NFC and collapsing white space; the interval
is a bootstrap over lines.

## Use

Image mode `{results["image_mode"]}`, prompt `{results["prompt"]!r}`.

```python
{load.rstrip()}
batch = processor(images=["line.png"], dtype=model.dtype)
ids = model.generate(**batch, max_new_tokens=256)
print(processor.decode_answers(ids[:, batch["input_ids"].shape[1] :])[0])
```

## Data

{data or "Not stated."}

## Licence

Set `license` in this card's head before publishing it; the base model's licence applies in any case.
"""
    # The class checks the head.
    return write_text(folder / MODEL_CARD_NAME, str(ModelCard(text)))
