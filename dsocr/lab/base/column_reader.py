"""The auxiliary reader that makes a model from random weights learn to read: CTC on the image tokens' columns.

Trained through the language model alone nothing is read for tens of thousands of lines. This reader is trained jointly
from the first step and thrown away afterwards. Source of the loss: Graves et al. 2006.
"""

import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from dsocr.lab.base.alignment import align_letters, guidance_loss
from dsocr.lab.base.shape import TILE_TOKENS
from dsocr.samples.collator import IGNORED, OcrCollator
from dsocr.samples.processor import OcrProcessor


# A column of image tokens is 27 pixels wide, up to four letters of a small hand; CTC needs an output for each.
SYMBOLS_PER_COLUMN = 4
# CTC loss per letter up to which a line's letters have a place to look at.
PLACED = 1.5
# CTC loss per letter up to which a line teaches the decoder. From lines that nobody can read it learns to make text up: French,
# from the real lines, "de de de" on every hand.
SHOWN = 2.0
# Largest share of letters that a line's decoder is shown wrong.
MISSPELT = 0.3
# Weight of the guided attention beside the language loss and the CTC loss.
GUIDANCE_WEIGHT = 1.0


class ColumnReader(nn.Module):
    """Reads letters off the columns of one row of tiles.

    Args:
        hidden_size: Width of an image feature.
        vocabulary: Number of token ids; the pad id serves as CTC's blank.
    """

    def __init__(self, hidden_size: int, vocabulary: int):
        super().__init__()
        # A letter cut by a tile's border is joined by looking at the neighbouring columns.
        self.letters = nn.Conv1d(TILE_TOKENS * hidden_size, SYMBOLS_PER_COLUMN * vocabulary, 3, padding=1)

    def forward(self, features: torch.Tensor, columns: int) -> torch.Tensor:
        """Features of a row of tiles `[batch, TILE_TOKENS * (columns + 1), hidden]`, a newline at each row's end ->
        log-probabilities `[SYMBOLS_PER_COLUMN * columns, batch, vocabulary]`."""
        batch, _, hidden = features.shape
        grid = features.reshape(batch, TILE_TOKENS, columns + 1, hidden)[:, :, :columns]
        stacked = grid.permute(0, 1, 3, 2).reshape(batch, TILE_TOKENS * hidden, columns)
        symbols = self.letters(stacked).transpose(1, 2).reshape(batch, SYMBOLS_PER_COLUMN * columns, -1)
        return symbols.float().log_softmax(-1).transpose(0, 1)


class JointLosses(NamedTuple):
    """Losses of lines of one tile grid.

    Attributes:
        total: What is minimised, a scalar: CTC loss, guidance, and the language loss of the lines that are read.
        language: Language loss of every line, the mean over its letters and its end, `[lines]`, without gradients.
        reader: CTC loss of every line per letter, `[lines]`, without gradients; `None` where the grid has several rows of
            tiles, which the auxiliary reader cannot follow.
        guidance: Loss of the guided attention, a scalar without gradients.
    """

    total: torch.Tensor
    language: torch.Tensor
    reader: torch.Tensor | None
    guidance: torch.Tensor


def _language_of_lines(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the language loss over each line's letters and its end, and their number, `[lines]` each."""
    losses = functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none"
    )
    return losses.sum(1), (labels[:, 1:] != IGNORED).sum(1)


def _read_columns(
    reader: ColumnReader, mosaic: torch.Tensor, columns: int, targets: list[list[int]], blank: int
) -> tuple[torch.Tensor, list[np.ndarray]]:
    """CTC loss of every line per letter, and the column of each letter, `-1` on lines that are not read yet."""
    log_probabilities = reader(mosaic, columns)
    lengths = torch.tensor([len(target) for target in targets])
    losses = functional.ctc_loss(
        log_probabilities,
        torch.tensor(list(itertools.chain.from_iterable(targets))),
        torch.full((len(targets),), log_probabilities.shape[0]),
        lengths,
        blank=blank,
        reduction="none",
        zero_infinity=True,
    )
    losses = losses / lengths
    paths = align_letters(log_probabilities.detach().numpy(), targets, blank)
    placed = [
        np.where((path < 0) | (loss > PLACED), -1, path // SYMBOLS_PER_COLUMN)
        for path, loss in zip(paths, losses.tolist(), strict=True)
    ]
    return losses, placed


def _misspell(batch: dict[str, torch.Tensor], end: int, generator: torch.Generator) -> torch.Tensor:
    """Input ids with a share of each answer's letters replaced by other letters of the batch; labels stay as they are.

    A decoder that has only ever seen right letters behind it loses its place at its first mistake.
    """
    ids, letters = batch["input_ids"], (batch["labels"] != IGNORED) & (batch["labels"] != end)
    shares = torch.rand(len(ids), 1, generator=generator) * MISSPELT
    chosen = letters & (torch.rand(ids.shape, generator=generator) < shares)
    others = ids[letters]
    drawn = others[torch.randint(len(others), ids.shape, generator=generator)]
    return torch.where(chosen, drawn, ids)


def joint_losses(
    model: PreTrainedModel, reader: ColumnReader, processor: OcrProcessor, rows: list[dict], *, seed: int | None = None
) -> JointLosses:
    """Losses of lines of one tile grid.

    Args:
        model: The base in training mode, with eager attention: no other implementation gives the attention away.
        reader: Its auxiliary reader.
        processor: Its processor.
        rows: `{"image", "text"}` of every line.
        seed: Seed of the letters that the decoder is shown wrong; `None` shows the right ones.
    """
    batch = OcrCollator(processor)(rows)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        batch["input_ids"] = _misspell(batch, processor.tokenizer.eos_token_id, generator)
    images = {name: batch.pop(name) for name in list(batch) if name.startswith(("pixel_values", "num_", "patches_"))}
    outputs = model.model.get_image_features(**images, return_dict=True)
    labels = batch.pop("labels")
    read = model(**batch, mm_encoder_outputs={"image": outputs}, output_attentions=True)
    sums, counts = _language_of_lines(read.logits, labels)
    language = (sums / counts).detach()
    tile_columns, tile_rows = images["patches_grid"][0]
    if tile_rows > 1:
        return JointLosses(sums.sum() / counts.sum(), language, None, torch.zeros(()))
    columns = int(tile_columns) * TILE_TOKENS
    losses, placed = _read_columns(
        reader,
        torch.stack([feature[: TILE_TOKENS * (columns + 1)] for feature in outputs.pooler_output]),
        columns,
        [processor.encode_answer(row["text"])[:-1] for row in rows],
        processor.tokenizer.pad_token_id,
    )
    guidance = guidance_loss(
        read.attentions,
        placed,
        first_image=int((batch["input_ids"][0] == processor.image_token_id).nonzero()[0]),
        first_answer=int((labels[0] != IGNORED).nonzero()[0]),
        shape=(TILE_TOKENS, columns),
    )
    shown = losses.detach() <= SHOWN
    taught = sums[shown].sum() / counts[shown].sum().clamp(min=1)
    total = taught + losses.mean() + GUIDANCE_WEIGHT * guidance
    return JointLosses(total, language, losses.detach(), guidance.detach())
