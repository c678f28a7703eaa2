"""The vision collator: batch and pad samples with any number of tiles."""

import random
from dataclasses import dataclass, replace
from typing import Any

import torch

from dsocr.data.image_files import image_name, open_image
from dsocr.samples.augmentation import augment_image
from dsocr.samples.batch import OcrSample
from dsocr.samples.geometry import ImageFeatures
from dsocr.samples.processor import OcrProcessor
from dsocr.samples.vision_cache.cache import FeatureCache


IGNORED = -100


@dataclass
class OcrCollator:
    """Turn dataset rows into a training batch (right padding, labels) or a generation batch (left padding, no answer).

    Labels are the input ids on the answer and its eos, and -100 on prompt, image tokens and padding. Nothing is ever
    truncated. Instances can be pickled, so they work in DataLoader workers under the spawn start method.

    Attributes:
        processor: Tokenizer, geometry and prompt.
        dtype: Dtype of the pixels: the model's, or `torch.uint8` to leave it to the model's tower to normalise them (see
            `dsocr.samples.vision_cache.tower.extend_tower`).
        max_length: Longest accepted sequence in tokens; `None` accepts any.
        for_generation: Leave out the answer and pad on the left.
        augment: Vary the images (for training only).
        seed: Together with `epoch`, image name and text it seeds the variation: new in every epoch, the same in every
            worker and in a resumed run.
        epoch: Set by the trainer when an epoch begins.
        features: Precomputed vision features. A batch whose images all have features carries them instead of pixels.

    Raises (when called):
        ValueError: for a sample longer than `max_length`; the message names its file, prompt length and answer length.
    """

    processor: OcrProcessor
    dtype: torch.dtype = torch.float32
    max_length: int | None = None
    for_generation: bool = False
    augment: bool = False
    seed: int = 0
    epoch: int = 0
    features: FeatureCache | None = None

    def _image(self, source: Any, text: str | None) -> Any:
        if not self.augment or self.for_generation:
            return source
        name = image_name(source)
        varied = augment_image(open_image(source), random.Random(f"{self.seed}/{self.epoch}/{name}/{text}"))
        # `image_name` takes the name for messages from this attribute.
        setattr(varied, "filename", name)  # noqa: B010
        return varied

    def _features(self, rows: list[dict[str, Any]]) -> list[ImageFeatures | None]:
        if self.features is None or (self.augment and not self.for_generation):
            return [None] * len(rows)
        found = [self.features.find(row["image"]) for row in rows]
        # The tower takes pixels or features, never a mix: one missing image makes the whole batch use pixels.
        return [None] * len(rows) if any(features is None for features in found) else found

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        texts = [None if self.for_generation else row["text"] for row in rows]
        samples = [
            self.processor.prepare(self._image(row["image"], text), text, found)
            for row, text, found in zip(rows, texts, self._features(rows), strict=True)
        ]
        for sample in samples:
            self._refuse_overlong(sample)
        batch = self.processor.collate(
            samples,
            padding_side="left" if self.for_generation else "right",
            dtype=self.dtype,
        )
        if not self.for_generation:
            batch["labels"] = torch.full_like(batch["input_ids"], IGNORED)
            for row, sample in enumerate(samples):
                answer = slice(sample.prompt_length, len(sample.input_ids))
                batch["labels"][row, answer] = batch["input_ids"][row, answer]
        return batch

    def without_augmentation(self) -> "OcrCollator":
        """A copy for evaluation, where images must not be varied."""
        return replace(self, augment=False)

    def _refuse_overlong(self, sample: OcrSample) -> None:
        if self.max_length is not None and len(sample.input_ids) > self.max_length:
            answer = len(sample.input_ids) - sample.prompt_length
            raise ValueError(
                f"{sample.name}: {sample.prompt_length} prompt and image tokens + {answer} answer tokens "
                f"are more than max_length={self.max_length}; raise --max_length, choose a smaller --image_mode, or "
                "pass --on_bad_sample skip."
            )
