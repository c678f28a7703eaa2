"""Read images by greedy generation, in batches of similar length, with a confidence for every line."""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from dsocr.data.image_files import measure_image_size
from dsocr.models.precision import training_precision
from dsocr.samples.collator import OcrCollator
from dsocr.samples.processor import OcrProcessor
from dsocr.samples.vision_cache.cache import FeatureCache
from dsocr.samples.vision_cache.tower import extend_tower


# The loop guard forbids repeating 20 tokens within 128: ordinary text never does.
LOOP_NGRAM, LOOP_WINDOW = 20, 128


@dataclass(frozen=True)
class ReadingOptions:
    """Options for reading images.

    Attributes:
        batch_size: Images per batch.
        max_new_tokens: Longest answer in tokens.
        loop_guard: Forbid any 20 tokens already present among the last 128.
        progress: Show a progress bar.
    """

    batch_size: int = 8
    max_new_tokens: int = 256
    loop_guard: bool = True
    progress: bool = True


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
    # Import here: modelling code is slow to import.
    from transformers.models.unlimited_ocr import generation_unlimited_ocr as generation

    return generation.UnlimitedOcrSlidingWindowNoRepeatNgramLogitsProcessor(LOOP_NGRAM, LOOP_WINDOW)


class _ConfidenceRecorder(LogitsProcessor):
    """Record the probability of every token chosen by greedy decoding; scores pass unchanged."""

    def __init__(self):
        self.steps: list[torch.Tensor] = []

    def __call__(self, input_ids, scores):
        scores_fp32 = scores.float()
        # The largest softmax value, without computing the softmax over the whole vocabulary.
        self.steps.append((scores_fp32.amax(dim=-1) - scores_fp32.logsumexp(dim=-1)).exp())
        return scores

    def means(self, ids: torch.Tensor, pad_token_id: int) -> list[float]:
        """Mean over each row's tokens up to and including eos, `[batch]`."""
        probabilities = torch.stack(self.steps, dim=1)[:, : ids.shape[1]]
        kept = (ids != pad_token_id).to(probabilities.dtype)
        return ((probabilities * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)).tolist()


@dataclass(frozen=True)
class ReadLine:
    """Text read from one image.

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
    options: ReadingOptions = ReadingOptions(),
    *,
    features: FeatureCache | None = None,
    prompt_tokens: Sequence[int] | None = None,
    description: str = "Reading",
) -> Iterator[ReadLine]:
    """Read images: greedy, batched, left-padded, with KV cache; yields lines batch by batch, the longest first.

    Args:
        model: Native model or `PeftModel`; its training mode is restored afterwards.
        processor: Its processor.
        images: Anything that `open_image` takes. Images of similar token counts share a batch.
        options: Batch size, longest answer, loop guard, progress bar.
        features: Precomputed vision features; images without features go through the vision tower.
        prompt_tokens: Tokens of every image's prompt, if counted before (`SampleMeter`).
        description: Label of the progress bar.

    Raises:
        UnreadableImageError: for an image that cannot be opened.
    """
    if prompt_tokens is None:
        prompt_tokens = [processor.count_prompt_tokens(*measure_image_size(image)) for image in images]
    order = sorted(range(len(images)), key=lambda index: -prompt_tokens[index])
    size = options.batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    extend_tower(model)
    collate = OcrCollator(processor, dtype=torch.uint8, for_generation=True, features=features)
    config = _generation_config(processor, options.max_new_tokens)
    guards = [_loop_guard()] if options.loop_guard else []
    # Don't use model.device: it reports the first parameter's device, and the vision tower may have been offloaded.
    device = model.get_input_embeddings().weight.device
    bar = tqdm(total=len(images), desc=description, unit="line", disable=not options.progress, leave=False)
    # One thread prepares the next batch while the model reads this one.
    with ThreadPoolExecutor(1) as pool, bar:
        prepared = pool.map(lambda batch: collate([{"image": images[index]} for index in batch]), batches)
        for indices, batch in zip(batches, prepared, strict=True):
            batch = {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
            recorder = _ConfidenceRecorder()
            with _generation_mode(model), training_precision(model):
                found = model.generate(
                    **batch, generation_config=config, logits_processor=LogitsProcessorList([*guards, recorder])
                )
            ids = found[:, batch["input_ids"].shape[1] :]
            confidences = recorder.means(ids, processor.tokenizer.pad_token_id)
            for line in zip(indices, processor.decode_answers(ids), confidences, strict=True):
                yield ReadLine(*line)
            bar.update(len(indices))


def transcribe(
    model: PreTrainedModel,
    processor: OcrProcessor,
    images: list[Any],
    options: ReadingOptions = ReadingOptions(),
    *,
    features: FeatureCache | None = None,
    prompt_tokens: Sequence[int] | None = None,
    description: str = "Reading",
) -> list[str]:
    """Call `read_lines` and return the texts in the order of the images.

    Args:
        model: Native model or `PeftModel`.
        processor: Its processor.
        images: Anything that `open_image` takes.
        options: See `read_lines`.
        features: See `read_lines`.
        prompt_tokens: See `read_lines`.
        description: See `read_lines`.
    """
    texts = [""] * len(images)
    lines = read_lines(
        model, processor, images, options, features=features, prompt_tokens=prompt_tokens, description=description
    )
    for line in lines:
        texts[line.index] = line.text
    return texts
