"""The auxiliary reader that makes a model from random weights learn to read: CTC on the image tokens' columns.

Trained through the language model alone nothing is read for tens of thousands of lines. This reader is trained jointly
from the first step and thrown away afterwards. Source of the loss: Graves et al. 2006.
"""

import itertools

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from dsocr.lab.base.shape import TILE_TOKENS
from dsocr.samples.collator import OcrCollator
from dsocr.samples.processor import OcrProcessor


# A column of image tokens is 27 pixels wide, up to four letters of a small hand; CTC needs an output for each.
SYMBOLS_PER_COLUMN = 4


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


def joint_losses(
    model: PreTrainedModel, reader: ColumnReader, processor: OcrProcessor, rows: list[dict]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of lines of one tile grid.

    Args:
        model: The base in training mode.
        reader: Its auxiliary reader.
        processor: Its processor.
        rows: `{"image", "text"}` of every line.

    Returns:
        The language loss, and the CTC loss of every line per letter, `[lines]`; it is 0 where the grid has several rows,
        which the auxiliary reader cannot follow.
    """
    batch = OcrCollator(processor)(rows)
    images = {name: batch.pop(name) for name in list(batch) if name.startswith(("pixel_values", "num_", "patches_"))}
    outputs = model.model.get_image_features(**images, return_dict=True)
    language = model(**batch, mm_encoder_outputs={"image": outputs}).loss
    tile_columns, tile_rows = images["patches_grid"][0]
    if tile_rows > 1:
        return language, torch.zeros(len(rows))
    columns = tile_columns * TILE_TOKENS
    mosaic = torch.stack([feature[: TILE_TOKENS * (columns + 1)] for feature in outputs.pooler_output])
    targets = [processor.encode_answer(row["text"])[:-1] for row in rows]
    lengths = torch.tensor([len(target) for target in targets])
    log_probabilities = reader(mosaic, columns)
    auxiliary = functional.ctc_loss(
        log_probabilities,
        torch.tensor(list(itertools.chain.from_iterable(targets))),
        torch.full((len(rows),), log_probabilities.shape[0]),
        lengths,
        blank=processor.tokenizer.pad_token_id,
        reduction="none",
        zero_infinity=True,
    )
    return language, auxiliary / lengths
