"""The speed of what surrounds a training step: the data loader, reading by generation, and loading a checkpoint."""

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel

from dsocr.data.image_files import open_image
from dsocr.data.synthetic import generate_lines
from dsocr.lab.random_models import StepOptions, random_batch
from dsocr.lab.training_step import TowerClock, timestamp
from dsocr.models import freeze_vision, load_model
from dsocr.models.sam_attention import split_global_attention
from dsocr.samples.collator import OcrCollator
from dsocr.samples.processor import OcrProcessor
from dsocr.samples.vision_cache.tower import extend_tower


DATA_LINES = 40
# Rendered lines are small. Eight times as large they have the size of a line in a scan.
_ENLARGED = 8
# About the tokens of one line of text. Random weights never end an answer by themselves.
NEW_TOKENS = 60
_LOADING_ROUNDS = 3


def measure_data(processor: OcrProcessor, dtype: torch.dtype) -> dict[str, float]:
    """Milliseconds that a worker spends on an image, on one core: medians over rendered lines stored as JPEG.

    Args:
        processor: Processor of the model.
        dtype: Type of the pixels.

    Returns:
        `decode_ms`, `resize_ms` (cutting into views) and `rest_ms`: the collator's whole time without those two, which
        is normalising, tokenising and padding.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    collate = OcrCollator(processor, dtype=dtype)
    stream = generate_lines("handwriting", seed=3, min_length=8, max_length=16)
    decode, resize, rest = [], [], []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for index in range(DATA_LINES):
                line = next(stream)
                path = str(Path(folder) / f"{index}.jpg")
                image = line.image.resize((line.image.width * _ENLARGED, line.image.height * _ENLARGED))
                image.save(path, quality=90)
                start = time.perf_counter()
                opened = open_image(path)
                decoded = time.perf_counter()
                processor.geometry.cut(opened)
                cut = time.perf_counter()
                collate([{"image": path, "text": line.text}])
                whole = time.perf_counter() - cut
                decode.append(decoded - start)
                resize.append(cut - decoded)
                rest.append(max(0.0, whole - (cut - start)))
    finally:
        torch.set_num_threads(threads)
    # The first line pays for imports and caches.
    return {
        name: 1000 * statistics.median(values[1:])
        for name, values in (("decode_ms", decode), ("resize_ms", resize), ("rest_ms", rest))
    }


def measure_reading(
    model: PreTrainedModel, options: StepOptions, repeats: int, new_tokens: int | None = None
) -> dict[str, float]:
    """Read one batch by generation, with pixels and with kept features in turn.

    Args:
        model: A bare native model; it is changed for good.
        options: Images, batch size and type; the rest belongs to training.
        repeats: Timed rounds, after one that is not timed.
        new_tokens: Tokens to generate for every line; `None` takes those of a line of text.

    Returns:
        `plain` and `features` in lines/s, their `ratio` (median over the rounds), `vision_share` (0..1, the tower's
        measured share of a plain reading), `bound` (the ratio if the tower took no time) and `new_tokens`.
    """
    model.eval()
    freeze_vision(model)
    split_global_attention(model)
    extend_tower(model)
    device, text = model.device, model.config.get_text_config()
    new_tokens = new_tokens or NEW_TOKENS
    # A prompt has no answer, so the one token of it is cut off again.
    batch = random_batch(model.config, replace(options, answer_tokens=1), device)
    del batch["labels"]
    for name in ("input_ids", "attention_mask"):
        batch[name] = batch[name][:, :-1]
    generation = GenerationConfig(
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=text.eos_token_id,
    )

    def read(inputs: dict) -> float:
        clock.seconds, start = 0.0, timestamp(device)
        model.generate(**inputs, generation_config=generation)
        return timestamp(device) - start

    plain, features, vision = [], [], []
    with torch.inference_mode():
        names = [name for name in ("pixel_values", "pixel_values_local") if name in batch]
        kept = {name: model.model.vision_tower(batch[name]).last_hidden_state for name in names}
        clock = TowerClock(model, device)
        for _ in tqdm(range(repeats + 1), desc="Measuring reading", leave=False):
            plain.append(read(batch))
            vision.append(clock.seconds)
            features.append(read({**batch, **kept}))
    plain, features, vision = plain[1:], features[1:], vision[1:]
    share = statistics.median(tower / whole for tower, whole in zip(vision, plain, strict=True))
    return {
        "plain": options.batch_size / statistics.median(plain),
        "features": options.batch_size / statistics.median(features),
        "ratio": statistics.median(slow / fast for slow, fast in zip(plain, features, strict=True)),
        "vision_share": share,
        "bound": 1 / (1 - share),
        "new_tokens": new_tokens,
    }


def measure_loading(folder: str | Path) -> dict[str, float]:
    """Compare `load_model` with reading the same bytes into memory, in turn, after one round that fills the page cache.

    Args:
        folder: A checkpoint of safetensors files.

    Returns:
        `load_seconds`, `read_seconds` (medians), `ratio` (median over the rounds), `gigabytes`.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    loads, reads = [], []
    for _ in range(_LOADING_ROUNDS + 1):
        start = time.perf_counter()
        contents = [np.fromfile(path, dtype=np.uint8) for path in files]
        reads.append(time.perf_counter() - start)
        del contents
        start = time.perf_counter()
        model = load_model(str(folder), dtype="auto")
        # safetensors maps the file: a page is read when it is first touched.
        for parameter in model.parameters():
            parameter.data.view(-1)[::1024].sum()
        loads.append(time.perf_counter() - start)
        del model
    return {
        "load_seconds": statistics.median(loads[1:]),
        "read_seconds": statistics.median(reads[1:]),
        "ratio": statistics.median(load / read for load, read in zip(loads[1:], reads[1:], strict=True)),
        "gigabytes": sum(path.stat().st_size for path in files) / 1e9,
    }
