"""The report on a checkpoint: one screen, aligned, with the verdict in its last line."""

from collections.abc import Iterator
from dataclasses import dataclass

from dsocr.lab.verification.running import Reading, Running, Training
from dsocr.models.checkpoint_files import CheckpointFile


_LABEL = 14
# A model that loops fills many lines; the beginning shows it.
_MOST_LETTERS = 80
# More files than this (a checkpoint in many shards) are counted instead of listed; so are tensors.
_MOST_FILES, _MOST_NAMES = 10, 4
_KINDS = {"missing_keys": "missing", "unexpected_keys": "unexpected", "mismatched_keys": "of another shape"}
_ORIGINS = {True: "as on the Hub", False: "NOT AS ON THE HUB", None: ""}


@dataclass(frozen=True)
class TokenId:
    """A control token: the tokenizer's id for it (`None`: unknown) and the id that the model was built for."""

    token: str
    found: int | None
    expected: int


@dataclass(frozen=True)
class Verification:
    """Results of verifying a checkpoint.

    Attributes:
        model: Name of the checkpoint or adapter.
        version: `"v1"`, `"v2"` or `"unlimited"`.
        machine: Versions and hardware, from `describe_machine`.
        half_type: The 16-bit type of this machine.
        unused_gpu: Why torch cannot use the machine's card; `None` without such a card.
        files: The checkpoint's files.
        differences: Tensors that the files lack or have too many, by kind; empty for a whole checkpoint.
        tokens: Control tokens.
        adapter_tensors: Number of tensors of the adapter; `None` without one.
        running: What the loaded model did; `None` when files or tokens are wrong.
    """

    model: str
    version: str
    machine: dict[str, str]
    half_type: str
    unused_gpu: str | None
    files: list[CheckpointFile]
    differences: dict[str, list[str]]
    tokens: list[TokenId]
    adapter_tensors: int | None
    running: Running | None

    def problems(self) -> list[str]:
        """Everything that stands against training, in words."""
        found = [f"{file.name} is not the file on the Hub" for file in self.files if file.as_sent is False]
        found += [f"{len(names)} tensors {_KINDS[kind]}" for kind, names in self.differences.items() if names]
        wrong = [token for token in self.tokens if token.found != token.expected]
        if wrong:
            found.append(f"the tokenizer has another id for {', '.join(token.token for token in wrong)}")
        if self.running is not None and not self.running.reading.sound:
            found.append("the first loss is not below chance: weights, prompt or wiring are wrong")
        if self.running is not None and self.running.training.peak is None:
            found.append("the memory ran out in a training step; recipes/qlora.py needs less (--plan says how much)")
        return found

    @property
    def sound(self) -> bool:
        """Whether nothing stands against training with this checkpoint on this machine."""
        return not self.problems()

    def describe(self) -> list[str]:
        """The report, one line per fact."""
        lines = [f"{label:<{_LABEL}}{text}" for label, text in self._facts()]
        problems = self.problems()
        verdict = "this machine will train it" if not problems else f"NO: {'; '.join(problems)}"
        if not problems and self.unused_gpu:
            verdict += ", on its CPU alone"
        return [*lines, f"{'verdict':<{_LABEL}}{verdict}"]

    def _facts(self) -> Iterator[tuple[str, str]]:
        machine = self.machine
        yield "model", f"{self.model} ({self.version})"
        yield "machine", f"{machine['device']}, torch {machine['torch']}, transformers {machine['transformers']}"
        if self.unused_gpu:
            yield "unused card", self.unused_gpu
        yield "half type", self.half_type
        yield from self._file_facts()
        yield "tensors", self._tensors()
        for kind, names in self.differences.items():
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            yield f"  {_KINDS[kind].split()[0]}", ", ".join(names[:_MOST_NAMES]) + more
        if self.adapter_tensors is not None:
            yield "adapter", f"{self.adapter_tensors} tensors, every one loaded and compared"
        for token in self.tokens:
            verdict = "as assumed" if token.found == token.expected else f"THE MODEL EXPECTS {token.expected}"
            yield "token", f"{token.token} {'unknown' if token.found is None else token.found}: {verdict}"
        if self.running is None:
            yield "not run", "loss, reading and training need whole weights and the right tokens"
        else:
            yield from _running_facts(self.running)

    def _file_facts(self) -> Iterator[tuple[str, str]]:
        width = max((len(file.name) for file in self.files[:_MOST_FILES]), default=0)
        for index, file in enumerate(self.files[:_MOST_FILES]):
            shown = f"{file.name:<{width}}{file.size:>15,} bytes  sha256 {file.sha256[:16]}  {_ORIGINS[file.as_sent]}"
            yield "" if index else "files", shown.rstrip()
        if len(self.files) > _MOST_FILES:
            yield "", f"and {len(self.files) - _MOST_FILES} more"

    def _tensors(self) -> str:
        stored = sum(file.tensors or 0 for file in self.files)
        counts = [f"{len(self.differences.get(kind, []))} {word}" for kind, word in _KINDS.items()]
        return f"{stored:,} in the files; {', '.join(counts)}"


def _running_facts(running: Running) -> Iterator[tuple[str, str]]:
    yield (
        "parameters",
        f"{running.parameters / 1e6:.1f} M in {running.dtype} on {running.device}, loaded in {running.load_seconds:.1f} s",
    )
    yield from _reading_facts(running.reading)
    yield "experts", running.experts.describe()
    yield "memory", f"reading {running.reading.peak.describe()}; this device has {running.total_gib:.1f} GiB"
    yield from _training_facts(running.training)


def _clip(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MOST_LETTERS else f"{line[:_MOST_LETTERS]} ..."


def _reading_facts(reading: Reading) -> Iterator[tuple[str, str]]:
    verdict = "below chance: sound" if reading.sound else "NOT below chance: weights, prompt or wiring are wrong"
    yield "first loss", f"{reading.loss:.3f} per answer token, ln(vocabulary) {reading.chance_loss:.3f}: {verdict}"
    yield "sample", f"{reading.reference}  ({reading.image_tokens} image tokens)"
    yield "read", f"{_clip(reading.read)}  (CER {reading.cer:.3f}, {reading.lines_per_second:.2f} lines/s)"
    same = "the same text" if reading.read_autocast == reading.read else _clip(reading.read_autocast)
    rerouted = f"{reading.rerouted:.1%} of tokens go to other experts"
    yield "  autocast", f"{same}  ({reading.autocast_dtype}; {rerouted})"


def _training_facts(training: Training) -> Iterator[tuple[str, str]]:
    if training.peak is None:
        yield "training", "out of memory with LoRA in this type, batch 2"
        return
    checkpointing = "checkpointing" if training.checkpointing else "no checkpointing"
    yield "", f"training {training.peak.describe()} (LoRA r 16, batch 2, {checkpointing})"
    yield (
        "training",
        f"{training.lines_per_second:.2f} lines/s expected with kept vision features, which take "
        f"{training.vision_seconds:.3f} s a line once",
    )
