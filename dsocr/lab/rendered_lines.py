"""Reading rendered lines with a tiny model: an error rate that needs no dataset."""

from transformers import PreTrainedModel

from dsocr.data.synthetic import SyntheticLine
from dsocr.reading.generation import ReadingOptions, transcribe
from dsocr.reading.metrics import TextMetrics, compute_metrics
from dsocr.samples.processor import OcrProcessor


# No training run draws lines with this seed.
EVALUATION_SEED = 1_000_003


def evaluate_lines(model: PreTrainedModel, processor: OcrProcessor, lines: list[SyntheticLine]) -> TextMetrics:
    """Error rates of rendered lines, by generation."""
    options = ReadingOptions(batch_size=32, max_new_tokens=32, progress=False)
    read = transcribe(model, processor, [line.image for line in lines], options)
    return compute_metrics([line.text for line in lines], read)
