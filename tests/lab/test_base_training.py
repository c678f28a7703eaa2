"""Training of the built-in base: its data, its curriculum, and resuming, at a tiny size."""

import itertools
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from dsocr.common.files import load_json
from dsocr.lab.base import column_reader
from dsocr.lab.base.chunks import LineSources, build_chunk
from dsocr.lab.base.column_reader import SYMBOLS_PER_COLUMN, ColumnReader, _misspell, joint_losses
from dsocr.lab.base.curriculum import (
    FIRST_PATIENCE,
    MOST_HANDS,
    MOST_LETTERS,
    PATIENCE,
    READ_HANDS,
    Curriculum,
    advance,
)
from dsocr.lab.base.hands import find_hands, hand_languages, load_held_out
from dsocr.lab.base.real_lines import RealLines, load_real_lines
from dsocr.lab.base.run import BaseArguments, Schedule, find_state
from dsocr.lab.base.shape import BaseShape, build_base_model, build_letter_tokenizer
from dsocr.lab.base.training import pretrain_base
from dsocr.models import load_model
from dsocr.samples.collator import OcrCollator
from dsocr.samples.processor import OcrProcessor


FULL = Curriculum(letters=MOST_LETTERS, hand=0.6, real=0.4)


@pytest.fixture(scope="module")
def real_folder(tmp_path_factory):
    """Three writers of one source: one to train on, one held out, one for the demonstration."""
    folder = tmp_path_factory.mktemp("real")
    source = "dhsd_german_words"
    held_out = load_held_out()
    writers = ["someone", held_out["writers"][source][0], held_out["demonstration"][source][0]]
    (folder / source).mkdir()
    rows = []
    for index, writer in enumerate(writers * 2):
        image = Image.new("L", (300, 64), 230)
        ImageDraw.Draw(image).text((20, 20), f"Straße’ {index}", fill=20)
        image.save(folder / source / f"{index}.png")
        rows.append({"file_name": f"{index}.png", "text": f"Straße’ {index}", "writer": writer})
    (folder / source / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / source / "SOURCE.md").write_text("# x\n\n- Attribution: the writers\n- Licence: CC BY 4.0\n")
    return folder


@pytest.fixture(scope="module")
def sources(real_folder):
    return LineSources(None, real_folder)


def test_every_letter_is_one_token_and_other_text_survives():
    tokenizer = build_letter_tokenizer()
    text = "Größe l'été œuvre, ёжик №5 «да» … ’ €"
    assert len(tokenizer.encode(text)) == len(text)
    assert tokenizer.decode(tokenizer.encode("ѣ ñ 漢 ы")) == "ѣ ñ 漢 ы"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert tokenizer.convert_tokens_to_ids("<image>") == len(tokenizer) - 1


def test_a_chunk_follows_from_seed_number_and_curriculum(sources):
    first, again, other = (
        build_chunk(sources, FULL, seed=3, index=index, batch_size=5, lines=24) for index in (7, 7, 8)
    )
    lines, repeated = list(itertools.chain(*first)), list(itertools.chain(*again))
    assert [line.text for line in lines] == [line.text for line in repeated]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(lines, repeated, strict=True))
    assert [line.text for line in lines] != [line.text for line in itertools.chain(*other)]
    assert len(lines) == 24 and {line.kind for line in lines} == {"print", "hand", "real"}


def test_batches_have_one_grid_and_room_for_every_letter(sources):
    chunk = build_chunk(sources, FULL, seed=0, index=0, batch_size=5, lines=200)
    for batch in chunk:
        assert len({line.grid for line in batch}) == 1 and len(batch) <= 5
        for line in batch:
            columns, rows = line.grid
            assert line.image.size == (80 * columns, 80 * rows)
            assert len(line.text) <= 3 * SYMBOLS_PER_COLUMN * columns
    assert {batch[0].grid[1] for batch in chunk} == {1, 2}
    halved = build_chunk(sources, Curriculum(), seed=0, index=0, batch_size=10, lines=40)
    assert {batch[0].grid for batch in halved} <= {(2, 1), (3, 1)} and max(map(len, halved)) == 5


def test_two_rows_of_tiles_train_the_language_model_alone():
    model, processor = build_base_model(BaseShape(64, 32, 1, 1, 2))
    model.set_attn_implementation("eager")
    reader = ColumnReader(64, len(processor.tokenizer))
    rows = [{"image": Image.new("RGB", size, "white"), "text": "ab"} for size in ((240, 160), (160, 80))]
    two, one = joint_losses(model, reader, processor, rows[:1]), joint_losses(model, reader, processor, rows[1:])
    assert two.reader is None and two.total.item() == pytest.approx(two.language.item(), rel=1e-5)
    # Nothing is read yet, so no letter has a column to look at.
    assert one.reader.item() > 1.5 and one.guidance.item() == 0
    # And a line that nobody reads does not teach the decoder.
    assert one.total.item() == pytest.approx(one.reader.item(), rel=1e-5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(column_reader, "SHOWN", 100.0)
        shown = joint_losses(model, reader, processor, rows[1:])
    assert shown.total.item() == pytest.approx(shown.language.item() + shown.reader.item(), rel=1e-5)


def test_some_letters_behind_the_decoder_are_wrong_and_none_that_it_must_write():
    _, processor = build_base_model(BaseShape(64, 32, 1, 1, 2))
    rows = [{"image": Image.new("RGB", (160, 80), "white"), "text": text} for text in ("abcdefghij" * 2, "xyz")]
    batch = OcrCollator(processor)(rows)
    changed = [_misspell(batch, processor.tokenizer.eos_token_id, torch.Generator().manual_seed(n)) for n in range(200)]
    differs = torch.stack([ids != batch["input_ids"] for ids in changed])
    letters = batch["labels"] != -100
    share = differs[:, letters].float().mean().item()
    assert 0.08 < share < 0.16
    assert not differs[:, ~letters].any() and not differs[:, batch["labels"] == processor.tokenizer.eos_token_id].any()
    assert torch.equal(changed[3], _misspell(batch, 1, torch.Generator().manual_seed(3)))


def test_no_writer_and_no_font_held_out_is_trained_on(sources, real_folder):
    assert {line.writer for line in RealLines(real_folder).lines} == {"someone"}
    assert load_real_lines(real_folder, "train")[0].text == "Straße' 0"
    chunk = build_chunk(sources, FULL, seed=0, index=1, batch_size=8, lines=64)
    origins = {line.origin for batch in chunk for line in batch}
    unseen = {hand.name for hand in find_hands(None) if hand.kind == "unseen"}
    assert "dhsd_german_words/someone" in origins
    assert len(unseen) == 2 and not origins & unseen


def test_held_out_writers_and_fonts_are_those_of_the_sources(shared):
    held_out, everything = load_held_out(), shared / "data" / "real_lines"
    for part in (held_out["writers"], held_out["demonstration"]):
        for source, writers in part.items():
            rows = [json.loads(row) for row in (everything / source / "metadata.jsonl").open(encoding="utf-8")]
            assert set(writers) <= {row["writer"] for row in rows}
    trained = {(line.source, line.writer) for line in load_real_lines(everything, "train")}
    watched = {(line.source, line.writer) for line in load_real_lines(everything, "held_out")}
    demonstrated = load_real_lines(everything, "demonstration")
    kept = {(line.source, line.writer) for line in demonstrated}
    assert not trained & watched and not trained & kept and not watched & kept
    assert len({source for source, _ in watched}) >= 3
    assert all(sum((line.source, line.writer) == one for line in demonstrated) >= 40 for one in kept)
    hands = find_hands(shared / "data" / "handwriting_fonts")
    assert sum(hand.kind == "unseen" for hand in hands) == 2 + len(held_out["fonts"])
    latin = next(hand for hand in hands if hand.name == "homemade-apple")
    assert "ru" not in hand_languages(latin) and "fr" in hand_languages(latin)


def test_the_curriculum_grows_with_what_is_read():
    start = Curriculum()
    assert advance(start, {"reader_print": 4.2}, 4.2, None) == Curriculum(waited=1)
    assert advance(start, {"reader_print": 0.5}, 0.5, None) == Curriculum(letters=5)
    assert advance(Curriculum(waited=FIRST_PATIENCE - 1), {"reader_print": 4.2}, 4.2, None).letters == 5
    assert advance(Curriculum(letters=9, waited=PATIENCE - 1), {"reader_print": 4.2}, 4.2, None).letters == 10
    long = Curriculum(letters=MOST_LETTERS)
    assert advance(long, {"reader_print": 0.5}, 0.9, None).hand > 0
    # More than half are hands only when the decoder writes print.
    half = Curriculum(letters=MOST_LETTERS, hand=0.5)
    assert advance(half, {"language_print": 1.0}, 0.9, None).hand == 0.5
    assert advance(half, {"language_print": 0.5}, 0.9, None).hand > 0.5
    ready = Curriculum(letters=MOST_LETTERS, hand=MOST_HANDS)
    assert advance(ready, {"reader_print": 0.1}, 0.3, READ_HANDS + 0.01).real == 0
    assert advance(Curriculum(letters=MOST_LETTERS, hand=0.3), {"reader_print": 0.1}, 0.3, 0.1).real == 0
    mixed = advance(ready, {"reader_print": 0.1}, 0.3, READ_HANDS - 0.01)
    # Once they are in, they stay.
    assert mixed.real > 0 and advance(mixed, {"reader_print": 0.1}, 0.3, 0.9).real > mixed.real


def test_the_reader_gives_four_letters_a_column():
    reader = ColumnReader(hidden_size=16, vocabulary=30)
    log_probabilities = reader(torch.randn(2, 3 * (6 + 1), 16), columns=6)
    assert log_probabilities.shape == (24, 2, 30)
    assert torch.allclose(log_probabilities.exp().sum(-1), torch.ones(24, 2))


def _arguments(folder, real_folder, **options) -> BaseArguments:
    arguments = BaseArguments(output_dir=str(folder), real_lines=str(real_folder), **options)
    arguments.schedule = Schedule(
        batch_size=3,
        warmup_steps=2,
        chunk_lines=6,
        eval_chunks=1,
        eval_lines=1,
        shape=BaseShape(64, 32, 1, 1, 2),
    )
    return arguments


def test_a_resumed_run_equals_an_unbroken_one_and_is_released(tmp_path, real_folder, monkeypatch):
    monkeypatch.setattr("dsocr.lab.base.evaluation.MAX_NEW_TOKENS", 4)
    monkeypatch.setattr("dsocr.lab.base.release.LINES", 1)
    unbroken = pretrain_base(_arguments(tmp_path / "whole", real_folder, max_chunks=2))
    pretrain_base(_arguments(tmp_path / "broken", real_folder, max_chunks=1))
    start = torch.load(find_state(tmp_path / "broken"), weights_only=True)
    resumed = pretrain_base(
        _arguments(tmp_path / "broken", real_folder, max_chunks=2, resume_from=str(tmp_path / "broken"))
    )
    weights = resumed.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in unbroken.model.state_dict().items())
    assert not all(torch.equal(value, weights[name]) for name, value in start["model"].items())
    assert resumed.progress.history[-1]["lines"] == 12 and (tmp_path / "broken" / "previous").is_dir()

    from dsocr.lab.base.release import write_release

    arguments = _arguments(tmp_path / "end", real_folder, resume_from=str(tmp_path / "broken"), decay_steps=1)
    ended = pretrain_base(arguments)
    assert ended.progress.decaying == resumed.progress.step
    folder = write_release(arguments, ended.progress)
    card, figures = (folder / "README.md").read_text(encoding="utf-8"), load_json(folder / "figures.json")
    for fact in ("dhsd_german_words", "the writers", "CC BY 4.0", f"{ended.progress.step} steps"):
        assert fact in card
    assert figures["cer"] and all(f"| {100 * cer:.1f} % |" in card for cer in figures["cer"].values())
    assert figures["history"] == ended.progress.history
    released = load_model(str(folder))
    assert released.dtype == torch.bfloat16
    assert OcrProcessor.from_pretrained(folder).geometry.choose_grid(720, 80) == (9, 1)
    rebuilt = pretrain_base(
        _arguments(tmp_path / "small", real_folder, max_chunks=0, resume_from=str(tmp_path / "end/last/continue.pt"))
    )
    assert rebuilt.progress.warmed == rebuilt.progress.step == ended.progress.step
    assert asdict(rebuilt.progress)["history"] == ended.progress.history


def test_the_base_fits_into_sixteen_megabytes():
    model, _ = build_base_model(BaseShape())
    assert sum(parameter.numel() for parameter in model.parameters()) * 2 <= 16e6
