"""What a data loader worker does with one image: decoding, cutting into views, and the rest."""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from dsocr.data.image_files import open_image
from dsocr.data.synthetic import generate_lines
from dsocr.lab.tiny import SIZE_DIVISOR, build_tiny_model
from dsocr.lab.training_speed import TrainingOptions
from dsocr.samples.collator import OcrCollator
from dsocr.samples.processor import OcrProcessor


LINES = 40
# Enlarged to what a scanner makes of a line.
ENLARGED = 8


def _processor(options: TrainingOptions) -> OcrProcessor:
    geometry = options.geometry
    tokenizer = build_tiny_model(geometry.version)[1].tokenizer
    divisor = 1 if geometry.base_size >= 512 else SIZE_DIVISOR
    return OcrProcessor(
        tokenizer, geometry.version, geometry.mode, size_divisor=divisor, patch_size=geometry.patch_size
    )


def measure_data(options: TrainingOptions) -> dict[str, float]:
    """Milliseconds an image on one core, medians over rendered lines stored as JPEG.

    Args:
        options: Geometry and type of the pixels.

    Returns:
        `decode_ms`, `resize_ms` (decoding comes before, normalising after it), `rest_ms` (the collator's whole time without
        the two: normalising, tokenising, padding).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    processor = _processor(options)
    collate = OcrCollator(processor, dtype=options.dtype)
    stream = generate_lines("handwriting", seed=3, min_length=8, max_length=16)
    decode, resize, rest = [], [], []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for index in range(LINES):
                line = next(stream)
                path = str(Path(folder) / f"{index}.jpg")
                image = line.image.resize((line.image.width * ENLARGED, line.image.height * ENLARGED))
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
    return {
        name: 1000 * statistics.median(values[1:])
        for name, values in (("decode_ms", decode), ("resize_ms", resize), ("rest_ms", rest))
    }
