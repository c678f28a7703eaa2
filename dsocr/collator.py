"""The vision collator: samples of any tile counts in one padded batch."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from dsocr.image_files import image_name
from dsocr.processor import OcrProcessor, OcrSample


IGNORED = -100


def normalize_pixels(views: list[np.ndarray], dtype: torch.dtype) -> torch.Tensor:
    """uint8 views, each `[side, side, 3]` in 0..255 -> `[n_views, 3, side, side]` in -1..1 (mean = std = 0.5)."""
    pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).to(torch.float32)
    return pixels.div_(255).sub_(0.5).div_(0.5).to(dtype).contiguous()


def collate_samples(
    samples: list[OcrSample],
    processor: OcrProcessor,
    *,
    padding_side: Literal["left", "right"],
    dtype: torch.dtype,
    pad_to_multiple_of: int | None = None,
) -> dict[str, Any]:
    """Pad samples into the native model's inputs.

    Returns:
        `input_ids`, `attention_mask` `[batch, length]`; `pixel_values` `[batch, 3, base, base]`; and when any image has
        tiles `pixel_values_local` `[sum of tiles, 3, tile, tile]`, `num_local_patches` (a list, tiles per image) and, for
        v1, `patches_grid` (a list of `[columns, rows]`).
    """
    length = max(len(sample.input_ids) for sample in samples)
    if pad_to_multiple_of:
        length = -(-length // pad_to_multiple_of) * pad_to_multiple_of
    input_ids = torch.full((len(samples), length), processor.tokenizer.pad_token_id)
    attention_mask = torch.zeros((len(samples), length), dtype=torch.long)
    for row, sample in enumerate(samples):
        start = length - len(sample.input_ids) if padding_side == "left" else 0
        stop = start + len(sample.input_ids)
        input_ids[row, start:stop] = torch.tensor(sample.input_ids)
        attention_mask[row, start:stop] = 1
    batch: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    batch["pixel_values"] = normalize_pixels([sample.views.global_view for sample in samples], dtype)
    tiles = [tile for sample in samples for tile in sample.views.tiles]
    if tiles:
        batch["pixel_values_local"] = normalize_pixels(tiles, dtype)
        batch["num_local_patches"] = [len(sample.views.tiles) for sample in samples]
        if processor.version != "v2":
            batch["patches_grid"] = [list(sample.views.grid) for sample in samples]
    return batch


@dataclass
class OcrCollator:
    """Turn dataset rows into a training batch (right padding, labels) or a generation batch (left padding, no answer).

    Labels are the input ids on the answer and its eos, and -100 on prompt, image tokens and padding. Nothing is ever
    cut. Instances can be pickled, so they work in data loader workers under the spawn start method.

    Attributes:
        processor: Tokenizer, geometry and prompt.
        dtype: Type of the pixels; give the model's.
        max_length: Longest sequence in tokens that is accepted; `None` accepts any.
        for_generation: Leave out the answer and pad on the left.
        pad_to_multiple_of: Round the batch's length up to a multiple.

    Raises (when called):
        ValueError: for a sample longer than `max_length`, naming its file, its prompt's and its answer's length.
    """

    processor: OcrProcessor
    dtype: torch.dtype = torch.float32
    max_length: int | None = None
    for_generation: bool = False
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        samples = [
            self.processor.prepare(row["image"], None if self.for_generation else row["text"]) for row in rows
        ]
        for sample in samples:
            self._refuse_overlong(sample)
        batch = collate_samples(
            samples,
            self.processor,
            padding_side="left" if self.for_generation else "right",
            dtype=self.dtype,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        if not self.for_generation:
            batch["labels"] = torch.full_like(batch["input_ids"], IGNORED)
            for row, sample in enumerate(samples):
                answer = slice(sample.prompt_length, len(sample.input_ids))
                batch["labels"][row, answer] = batch["input_ids"][row, answer]
        return batch

    def _refuse_overlong(self, sample: OcrSample) -> None:
        if self.max_length is not None and len(sample.input_ids) > self.max_length:
            answer = len(sample.input_ids) - sample.prompt_length
            raise ValueError(
                f"{image_name(sample.name)}: {sample.prompt_length} prompt and image tokens + {answer} answer tokens "
                f"are more than max_length={self.max_length}; raise --max_length, choose a smaller --image_mode, or "
                "pass --on_bad_sample skip."
            )
