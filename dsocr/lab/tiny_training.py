"""Training the built-in tiny base model to read printed lines, from random weights on a CPU.

Trained through the language model alone, a tiny random model of this architecture reads nothing for tens of thousands of
samples. What makes it learn within minutes is an auxiliary reader on the image tokens: each column of the tile mosaic
predicts characters under the CTC loss (Graves et al. 2006), jointly with the language loss from the first step, while
the lines grow longer. The auxiliary reader is thrown away afterwards.
"""

import itertools
import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from dsocr.data.synthetic import SyntheticLine, generate_lines
from dsocr.lab.tiny import build_tiny_model
from dsocr.models import load_model
from dsocr.reading.generation import ReadingOptions, transcribe
from dsocr.reading.metrics import TextMetrics, compute_metrics
from dsocr.samples.collator import OcrCollator
from dsocr.samples.processor import OcrProcessor


logger = logging.getLogger(__name__)

STATE_NAME = "pretraining_state.pt"
RUNS_NAME = "runs.json"
# Steps that share one data stream; checkpoints are written at its end, so that a resumed run sees the same lines.
SEGMENT = 100
EVALUATION_SEED = 1_000_003
SYMBOLS_PER_COLUMN = 2


@dataclass
class PretrainArguments:
    """Arguments of recipes/pretrain_tiny.py."""

    output_dir: str = field(default="outputs/tiny_base", metadata={"help": "Folder of the model and its state."})
    max_steps: int = field(default=6000, metadata={"help": "Optimizer steps."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Lines per step."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    warmup_steps: int = field(default=200, metadata={"help": "Steps of linear warm-up."})
    max_length: int = field(default=16, metadata={"help": "Longest line, in characters."})
    growth: float = field(
        default=0.4, metadata={"help": "Share of the run over which lines grow to their full length."}
    )
    width: int = field(default=128, metadata={"help": "Hidden size of language model and second vision encoder."})
    sam_width: int = field(default=64, metadata={"help": "Hidden size of the first vision encoder."})
    layers: int = field(default=3, metadata={"help": "Decoder layers."})
    seed: int = field(default=0, metadata={"help": "Seed of weights and data."})
    eval_steps: int = field(default=500, metadata={"help": "Evaluate and save every so many steps."})
    eval_lines: int = field(default=128, metadata={"help": "Lines of an evaluation during training."})
    threads: int = field(default=0, metadata={"help": "CPU threads; 0 takes all."})
    bf16: bool = field(default=True, metadata={"help": "Run forward in bfloat16 (autocast); weights stay fp32."})
    resume: bool = field(default=False, metadata={"help": "Go on from the state in output_dir."})


class ColumnReader(nn.Module):
    """Reads characters off the columns of one row of tiles, for the auxiliary CTC loss.

    Args:
        hidden_size: Width of an image feature.
        rows: Image token rows of a tile.
        vocabulary: Number of token ids; the pad id serves as CTC's blank.
    """

    def __init__(self, hidden_size: int, rows: int, vocabulary: int):
        super().__init__()
        self.rows = rows
        self.linear = nn.Linear(rows * hidden_size, SYMBOLS_PER_COLUMN * vocabulary)

    def forward(self, features: torch.Tensor, columns: int) -> torch.Tensor:
        """Features of the tile mosaic `[batch, rows * (columns + 1), hidden]`, a newline at each row's end ->
        log-probabilities `[SYMBOLS_PER_COLUMN * columns, batch, vocabulary]`."""
        batch, _, hidden = features.shape
        grid = features.reshape(batch, self.rows, columns + 1, hidden)[:, :, :columns]
        stacked = grid.permute(0, 2, 1, 3).reshape(batch, columns, self.rows * hidden)
        symbols = self.linear(stacked).reshape(batch, SYMBOLS_PER_COLUMN * columns, -1)
        return symbols.float().log_softmax(-1).transpose(0, 1)


def joint_loss(
    model: PreTrainedModel, reader: ColumnReader, processor: OcrProcessor, lines: list[SyntheticLine]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The language loss and the auxiliary CTC loss of lines of one tile grid `(columns, 1)`."""
    batch = OcrCollator(processor)([{"image": line.image, "text": line.text} for line in lines])
    images = {name: batch.pop(name) for name in list(batch) if name.startswith(("pixel_values", "num_", "patches_"))}
    outputs = model.model.get_image_features(**images, return_dict=True)
    tokens_per_tile = reader.rows
    columns = images["patches_grid"][0][0] * tokens_per_tile
    mosaic = torch.stack([feature[: reader.rows * (columns + 1)] for feature in outputs.pooler_output])
    language = model(**batch, mm_encoder_outputs={"image": outputs}).loss
    targets = [processor.encode_answer(line.text)[:-1] for line in lines]
    log_probabilities = reader(mosaic, columns)
    auxiliary = functional.ctc_loss(
        log_probabilities,
        torch.tensor(list(itertools.chain.from_iterable(targets))),
        torch.full((len(lines),), log_probabilities.shape[0]),
        torch.tensor([len(target) for target in targets]),
        blank=processor.tokenizer.pad_token_id,
        zero_infinity=True,
    )
    return language, auxiliary


def line_length(step: int, arguments: PretrainArguments) -> int:
    """The longest line of a step: 2 characters at first, `max_length` after the share `growth` of the run."""
    grown = (arguments.max_length - 2) * step / max(arguments.growth * arguments.max_steps, 1)
    return min(arguments.max_length, 2 + int(grown))


def learning_rate_factor(step: int, arguments: PretrainArguments) -> float:
    """Linear warm-up, then a cosine down to 2 %."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / arguments.max_steps)))
    return min(1.0, (step + 1) / arguments.warmup_steps) * (0.02 + 0.98 * cosine)


def evaluate_lines(
    model: PreTrainedModel, processor: OcrProcessor, lines: list[SyntheticLine], *, progress: bool = False
) -> TextMetrics:
    """Error rates of rendered lines, by generation."""
    options = ReadingOptions(batch_size=32, max_new_tokens=32, progress=progress)
    read = transcribe(model, processor, [line.image for line in lines], options)
    return compute_metrics([line.text for line in lines], read)


def _segment_stream(step: int, arguments: PretrainArguments) -> Iterator[SyntheticLine]:
    segment = step // SEGMENT
    length = line_length(segment * SEGMENT, arguments)
    return generate_lines("print", seed=arguments.seed * 1_000_000 + segment, max_length=length)


def _save(folder: Path, model, processor, reader, optimizer, step: int, history: list[dict]) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    state = {"reader": reader.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "history": history}
    torch.save(state, folder / STATE_NAME)


def load_runs(folder: str | Path) -> list[dict]:
    """The runs that made a model: `{"first_step", "arguments"}`, one for every start."""
    path = Path(folder) / RUNS_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _note_run(folder: Path, arguments: PretrainArguments, first_step: int) -> None:
    runs = load_runs(folder) if arguments.resume else []
    runs.append({"first_step": first_step, "arguments": asdict(arguments)})
    (folder / RUNS_NAME).write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


def pretrain(arguments: PretrainArguments) -> tuple[PreTrainedModel, OcrProcessor, list[dict]]:
    """Train a tiny base model on printed lines.

    Returns:
        The model, its processor, and the history: step, lines seen, longest line, losses, CER, seconds.
    """
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    model, processor = build_tiny_model(
        "v1", width=arguments.width, sam_width=arguments.sam_width, layers=arguments.layers, seed=arguments.seed
    )
    rows = math.ceil(processor.geometry.tile_size // processor.patch_size / 4)
    reader = ColumnReader(arguments.width, rows, len(processor.tokenizer))
    folder, state = Path(arguments.output_dir), None
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.resume:
        model = load_model(str(folder), dtype="float32")
        state = torch.load(folder / STATE_NAME, weights_only=True)
        reader.load_state_dict(state["reader"])
    parameters = [*model.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    first, history = 0, []
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
        first, history = state["step"], state["history"]
    _note_run(folder, arguments, first)
    model.train()
    start, earlier = time.perf_counter(), history[-1]["seconds"] if history else 0.0
    sums = torch.zeros(2)
    bar = tqdm(range(first, arguments.max_steps), initial=first, total=arguments.max_steps, desc="Training")
    for step in bar:
        if step % SEGMENT == 0 or step == first:
            stream = _segment_stream(step, arguments)
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * learning_rate_factor(step, arguments)
        lines = list(itertools.islice(stream, arguments.per_device_train_batch_size))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=arguments.bf16):
            language, auxiliary = joint_loss(model, reader, processor, lines)
        (language + auxiliary).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        sums += torch.tensor([language.item(), auxiliary.item()])
        if (step + 1) % arguments.eval_steps == 0 or step + 1 == arguments.max_steps:
            length = line_length(step, arguments)
            held_out = generate_lines("print", seed=EVALUATION_SEED, max_length=length)
            metrics = evaluate_lines(model, processor, list(itertools.islice(held_out, arguments.eval_lines)))
            count = (step % arguments.eval_steps) + 1
            record = {
                "step": step + 1,
                "lines": (step + 1) * arguments.per_device_train_batch_size,
                "max_length": length,
                "language_loss": float(sums[0]) / count,
                "auxiliary_loss": float(sums[1]) / count,
                "cer": metrics.cer,
                "seconds": earlier + time.perf_counter() - start,
            }
            history.append(record)
            logger.info("%s", json.dumps({key: round(value, 4) for key, value in record.items()}))
            sums.zero_()
            _save(folder, model, processor, reader, optimizer, step + 1, history)
    return model.eval(), processor, history
