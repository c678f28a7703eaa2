"""Reading images by generation, and error rates of what was read."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from dsocr.collator import OcrCollator
from dsocr.environment import process_rank
from dsocr.features.cache import FeatureCache
from dsocr.image_files import read_image_size
from dsocr.metrics import TextMetrics, compute_metrics
from dsocr.processor import OcrProcessor


# A loop guard that leaves ordinary text alone: no 20 tokens twice within 128.
LOOP_NGRAM = 20
LOOP_WINDOW = 128


@contextlib.contextmanager
def _generation_mode(model: PreTrainedModel):
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _generation_config(processor: OcrProcessor, max_new_tokens: int) -> GenerationConfig:
    tokenizer = processor.tokenizer
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[processor.image_token_id],
    )


def _loop_guard() -> LogitsProcessor:
    # Imported when it is needed, as the model's class is.
    from transformers.models.unlimited_ocr import generation_unlimited_ocr as generation

    return generation.UnlimitedOcrSlidingWindowNoRepeatNgramLogitsProcessor(LOOP_NGRAM, LOOP_WINDOW)


class _ConfidenceRecorder(LogitsProcessor):
    """Remembers the probability of every token that greedy decoding takes; it changes nothing."""

    def __init__(self):
        self.steps: list[torch.Tensor] = []

    def __call__(self, input_ids, scores):
        scores_fp32 = scores.float()
        # The largest softmax value, without the softmax of the whole vocabulary.
        self.steps.append((scores_fp32.amax(dim=-1) - scores_fp32.logsumexp(dim=-1)).exp())
        return scores

    def means(self, ids: torch.Tensor, pad_token_id: int) -> list[float]:
        """Mean over each row's tokens up to and including eos, `[batch]`."""
        probabilities = torch.stack(self.steps, dim=1)[:, : ids.shape[1]]
        kept = (ids != pad_token_id).to(probabilities.dtype)
        return ((probabilities * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)).tolist()


@dataclass(frozen=True)
class ReadLine:
    """What was read of one image.

    Attributes:
        index: Position of the image in the list.
        text: The text.
        confidence: Mean probability of its tokens, eos included, in 0..1.
    """

    index: int
    text: str
    confidence: float


def read_lines(
    model: PreTrainedModel,
    processor: OcrProcessor,
    images: list[Any],
    *,
    batch_size: int = 8,
    max_new_tokens: int = 256,
    loop_guard: bool = True,
    features: FeatureCache | None = None,
    description: str = "Reading",
    progress: bool = True,
) -> Iterator[ReadLine]:
    """Read images: greedy, batched, left-padded, with KV cache; yields lines as batches are done, the longest first.

    Args:
        model: Native model or `PeftModel`; its training mode is restored afterwards.
        processor: Its processor.
        images: What `open_image` takes.
        batch_size: Images per batch. Images of similar token counts share a batch, whatever the order of the list.
        max_new_tokens: Longest answer in tokens.
        loop_guard: Forbid any 20 tokens that already stand among the last 128.
        features: Vision features that were computed before; images that are not in it are looked at.
        description: Label of the progress bar.
        progress: Show it.

    Raises:
        UnreadableImageError: for an image that cannot be opened.
    """
    tokens = [processor.count_prompt_tokens(*read_image_size(image)) for image in images]
    order = sorted(range(len(images)), key=lambda index: -tokens[index])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    collate = OcrCollator(processor, dtype=model.dtype, for_generation=True, features=features)
    config = _generation_config(processor, max_new_tokens)
    guards = [_loop_guard()] if loop_guard else []
    # Not the model's own answer, which is its first parameter's: the vision tower may be elsewhere.
    device = model.get_input_embeddings().weight.device
    bar = tqdm(total=len(images), desc=description, unit="line", disable=not progress, leave=False)
    # One thread prepares the next batch while the model reads this one.
    with ThreadPoolExecutor(1) as pool, bar:
        prepared = pool.map(lambda batch: collate([{"image": images[index]} for index in batch]), batches)
        for indices, batch in zip(batches, prepared, strict=True):
            batch = {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
            recorder = _ConfidenceRecorder()
            with _generation_mode(model):
                found = model.generate(
                    **batch, generation_config=config, logits_processor=LogitsProcessorList([*guards, recorder])
                )
            ids = found[:, batch["input_ids"].shape[1] :]
            confidences = recorder.means(ids, processor.tokenizer.pad_token_id)
            for line in zip(indices, processor.decode_answers(ids), confidences, strict=True):
                yield ReadLine(*line)
            bar.update(len(indices))


def transcribe(model: PreTrainedModel, processor: OcrProcessor, images: list[Any], **options) -> list[str]:
    """`read_lines`, as a list of texts in the order of the images.

    Args:
        model: Native model or `PeftModel`.
        processor: Its processor.
        images: What `open_image` takes.
        **options: Further arguments of `read_lines`.
    """
    texts = [""] * len(images)
    for line in read_lines(model, processor, images, **options):
        texts[line.index] = line.text
    return texts


@dataclass(frozen=True)
class EvaluatedSet:
    """What was read of one dataset.

    Attributes:
        metrics: Error rates.
        references: What the lines say.
        predictions: What was read.
    """

    metrics: TextMetrics
    references: list[str]
    predictions: list[str]


def _gather_texts(texts: list[str]) -> list[list[str]]:
    gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, texts)
    return gathered


def evaluate_dataset(
    model: PreTrainedModel,
    processor: OcrProcessor,
    dataset: Dataset,
    *,
    shuffle_images: bool = False,
    batch_size: int = 8,
    max_new_tokens: int = 256,
    features: FeatureCache | None = None,
    description: str = "Reading",
    progress: bool = True,
) -> EvaluatedSet:
    """Error rates by generation; under a process group every process reads its share and all get the result.

    Args:
        model: Native model or `PeftModel`.
        processor: Its processor.
        dataset: Columns `image` and `text`.
        shuffle_images: Show each line the next line's image. An adapter that reads is clearly worse here; one that only
            learned which letters are frequent is not.
        batch_size: See `transcribe`.
        max_new_tokens: See `transcribe`.
        features: See `read_lines`.
        description: See `transcribe`.
        progress: See `transcribe`.
    """
    images, references = list(dataset["image"]), list(dataset["text"])
    if shuffle_images:
        images = images[1:] + images[:1]
    rank, ranks = process_rank()
    share = transcribe(
        model,
        processor,
        images[rank::ranks],
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        features=features,
        description=description,
        progress=progress and rank == 0,
    )
    predictions = share
    if ranks > 1:
        predictions = [""] * len(images)
        for other, texts in enumerate(_gather_texts(share)):
            predictions[other::ranks] = texts
    return EvaluatedSet(compute_metrics(references, predictions), references, predictions)


def evaluate_sets(
    model: PreTrainedModel,
    processor: OcrProcessor,
    sets: dict[str, Dataset],
    *,
    without_adapter: bool = False,
    **options,
) -> dict[str, EvaluatedSet]:
    """`evaluate_dataset` of several named sets.

    Args:
        model: Native model or `PeftModel`.
        processor: Its processor.
        sets: Datasets by name.
        without_adapter: Switch the adapter of a `PeftModel` off, which gives the base model.
        **options: Further arguments of `evaluate_dataset`.
    """
    off = without_adapter and hasattr(model, "disable_adapter")
    with model.disable_adapter() if off else contextlib.nullcontext():
        return {
            name: evaluate_dataset(model, processor, dataset, description=f"Reading {name}", **options)
            for name, dataset in sets.items()
        }
