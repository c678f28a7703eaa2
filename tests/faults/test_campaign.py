"""Mutated sources of every kind through every entry point: each is read, or refused in one clear line; never a trace.

The inputs are generated from a seed. Where the mutation leaves the number of rows known, rows out plus rows counted as bad
must equal rows in. Counts: docs/reliability.md; print them with `pytest tests/faults -m "slow or not slow" -s`.
"""

import json
import random
import zlib
from collections import Counter

import pytest
from PIL import Image, ImageDraw

from dsocr.common.errors import explain
from dsocr.data import BadSamples, load_ocr_dataset
from dsocr.data.importers.preparing import PrepareOptions, prepare_dataset
from dsocr.doctor import examine


ROWS = 6
MUTATIONS = 40
TEXTS = ['He said "no"', "naïve café", "Ёжик, съезд", "=1+1", "a\tb", "x" * 30]
COUNTS: Counter[str] = Counter()


def draw_rows(folder):
    (folder / "images").mkdir(parents=True)
    for index in range(ROWS):
        image = Image.new("RGB", (120, 40), "white")
        ImageDraw.Draw(image).text((5 + index, 12), f"line {index}", fill="black")
        image.save(folder / "images" / f"{index}.png")
    return [f"images/{index}.png" for index in range(ROWS)]


def table(separator):
    def write(names):
        def cell(text):
            return '"' + text.replace('"', '""') + '"' if separator == "," else text.replace("\t", " ")

        lines = ["image" + separator + "text"]
        lines += [f"{name}{separator}{cell(text)}" for name, text in zip(names, TEXTS, strict=True)]
        return "\n".join(lines) + "\n"

    return write


def jsonl(names):
    return "".join(
        json.dumps({"image": n, "text": t, "split": "train"}) + "\n" for n, t in zip(names, TEXTS, strict=True)
    )


def coco(names):
    images = [{"id": i, "file_name": name, "width": 120, "height": 40} for i, name in enumerate(names)]
    lines = [{"id": i, "image_id": i, "bbox": [2, 5, 90, 30], "text": text} for i, text in enumerate(TEXTS)]
    return json.dumps({"images": images, "annotations": lines})


def label_studio(names):
    def task(name, text):
        value = {"x": 2, "y": 5, "width": 80, "height": 80, "rotation": 0, "text": [text]}
        result = {"id": "a", "type": "textarea", "original_width": 120, "original_height": 40, "value": value}
        return {"data": {"image": name}, "annotations": [{"result": [result]}]}

    return json.dumps([task(name, text) for name, text in zip(names, TEXTS, strict=True)])


def chat(names):
    rows = [
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}], "images": [name]}
        for name, text in zip(names, TEXTS, strict=True)
    ]
    return json.dumps(rows)


def page_xml(names):
    pages = "".join(
        f'<Page imageFilename="{name}" imageWidth="120" imageHeight="40"><TextRegion id="r"><TextLine id="l"><Coords '
        'points="2,5 90,5 90,35 2,35"/><TextEquiv index="0"><Unicode>text</Unicode></TextEquiv></TextLine></TextRegion></Page>'
        for name in names
    )
    return f'<PcGts xmlns="http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15">{pages}</PcGts>'


def alto(names):
    files = "".join(f"<fileName>{name}</fileName>" for name in names)
    pages = "".join(
        '<Page WIDTH="120" HEIGHT="40"><PrintSpace><TextLine ID="l" HPOS="2" VPOS="5" WIDTH="90" HEIGHT="30">'
        '<String CONTENT="text"/></TextLine></PrintSpace></Page>'
        for _ in names
    )
    return (
        f'<alto xmlns="http://www.loc.gov/standards/alto/ns-v4#"><Description><sourceImageInformation>{files}'
        f"</sourceImageInformation></Description><Layout>{pages}</Layout></alto>"
    )


KINDS = {
    "lines.csv": table(","),
    "lines.tsv": table("\t"),
    "lines.jsonl": jsonl,
    "coco.json": coco,
    "studio.json": label_studio,
    "chat.json": chat,
    "page.xml": page_xml,
    "alto.xml": alto,
}
TOKENS = [
    "NaN",
    "Infinity",
    "-1",
    "1e999",
    "null",
    "true",
    "[]",
    "{}",
    '""',
    "9" * 5000,
    "\ud800",
    "../../x",
    "\\",
    "\x00",
]


def mutate(content: str, rng: random.Random) -> bytes:
    """One to three edits of a text, the kinds that files suffer: cut, doubled, swapped, foreign bytes and values."""
    data = content.encode("utf-8")
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(max(1, len(data)))
        end = min(len(data), start + rng.choice([1, 2, 10, 60]))
        way = rng.randrange(8)
        if way == 0:
            data = data[:start]
        elif way == 1:
            data = data[:start] + data[end:]
        elif way == 2:
            data = data[:end] + data[start:]
        elif way == 3:
            data = data[:start] + bytes(rng.randrange(256) for _ in range(3)) + data[end:]
        elif way == 4:
            data = data[:start] + rng.choice(TOKENS).encode("utf-8", "surrogatepass") + data[end:]
        elif way == 5:
            data = data.replace(b"\n", b"\r\n") if rng.random() < 0.5 else b"\xef\xbb\xbf" + data
        elif way == 6:
            digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57] or [0]
            at = rng.choice(digits)
            data = data[:at] + rng.choice(TOKENS).encode("utf-8", "surrogatepass") + data[at + 1 :]
        else:
            old, new = rng.sample([b'"', b",", b":", b"[", b"{", b"<", b">", b"=", b"\t", b"\n"], 2)
            data = data.replace(old, new, rng.randint(1, 3))
    return data


def load(source, bad, out):
    return len(load_ocr_dataset(source, bad_samples=bad, progress=False))


def prepare(source, bad, out):
    return prepare_dataset(source, out, PrepareOptions(), bad)


def look(source, bad, out):
    return len(examine(source).rows)


ENTRIES = {"load": load, "prepare": prepare, "doctor": look}


def run(entry, source, out):
    """Outcome of one run: `fine`, or `refused` with a message that `explain` finds clear; anything else is a failure."""
    bad = BadSamples("skip")
    try:
        rows = ENTRIES[entry](source, bad, out)
    except Exception as error:
        message = explain(error)
        assert message, f"a trace: {type(error).__name__}: {error}"
        assert source.name in message or str(source.parent) in message, f"names no file: {message}"
        COUNTS[f"{entry}: refused"] += 1
        return None, bad
    COUNTS[f"{entry}: fine"] += 1
    return rows, bad


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_mutated_source_is_read_or_refused_clearly(tmp_path, kind):
    names = draw_rows(tmp_path)
    content = KINDS[kind](names)
    source = tmp_path / kind
    source.write_text(content, encoding="utf-8")
    entries = ["prepare", "load", "doctor"] if kind.startswith("lines") else ["prepare"]
    # The sound source first: all rows arrive everywhere.
    for entry in entries:
        rows, bad = run(entry, source, tmp_path / f"out_{entry}")
        assert rows == ROWS and not bad.counts
    for number in range(MUTATIONS):
        rng = random.Random(zlib.crc32(f"{kind} {number}".encode()))
        source.write_bytes(mutate(content, rng))
        for entry in entries:
            run(entry, source, tmp_path / f"out_{entry}_{number}")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "gif", "bmp"])
def test_a_mutated_image_is_read_or_counted(tmp_path, suffix):
    draw_rows(tmp_path)
    picture = tmp_path / f"line.{suffix}"
    Image.open(tmp_path / "images" / "0.png").save(picture)
    content = picture.read_bytes()
    source = tmp_path / "lines.jsonl"
    names = [f"line.{suffix}", "images/1.png"]
    source.write_text("".join(json.dumps({"image": name, "text": "x"}) + "\n" for name in names))
    for number in range(MUTATIONS):
        rng = random.Random(zlib.crc32(f"{suffix} {number}".encode()))
        data = bytearray(content)
        for _ in range(rng.randint(1, 30)):
            # Headers decide most, so half of the edits hit the first 64 bytes.
            data[rng.randrange(min(len(data), 64) if rng.random() < 0.5 else len(data))] = rng.randrange(256)
        picture.write_bytes(bytes(data[: rng.randrange(len(data))]) if rng.random() < 0.2 else bytes(data))
        for entry in ("load", "prepare"):
            rows, bad = run(entry, source, tmp_path / f"out_{entry}_{number}")
            assert rows is not None and rows + bad.counts.total() == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lines.csv", "lines.tsv", "lines.jsonl"])
def test_no_row_of_a_table_is_lost(tmp_path, kind):
    """Mutations inside one cell: every row is read or counted."""
    names = draw_rows(tmp_path)
    source = tmp_path / kind
    pieces = [
        '"',
        '""',
        "'",
        '"a',
        'a"',
        ' "a" ',
        "=x",
        "\\",
        "\\n",
        "\u2028",
        "\u0085",
        "\x0b",
        "\ufeff",
        "🙂",
        ";",
        "#",
    ]
    for number in range(MUTATIONS):
        rng = random.Random(zlib.crc32(f"{kind} cell {number}".encode()))
        texts = [text.replace("\t", " ") for text in TEXTS]
        for _ in range(3):
            row = rng.randrange(ROWS)
            at = rng.randrange(len(texts[row]) + 1)
            texts[row] = texts[row][:at] + rng.choice(pieces) + texts[row][at:]
        if kind.endswith("jsonl"):
            content = "".join(json.dumps({"image": n, "text": t}) + "\n" for n, t in zip(names, texts, strict=True))
        else:
            separator = "," if kind.endswith("csv") else "\t"
            # Cells as people type them, without the quotes of a CSV writer.
            cells = [text.replace(",", ";") for text in texts]
            content = f"image{separator}text\n" + "".join(
                f"{n}{separator}{t}\n" for n, t in zip(names, cells, strict=True)
            )
        source.write_text(content, encoding="utf-8", newline="")
        rows, bad = run("load", source, None)
        # A table that cannot be split into cells is refused as a whole; that is no silent loss.
        assert rows is None or rows + bad.counts.total() == ROWS, content


@pytest.fixture(scope="module", autouse=True)
def show_counts():
    yield
    print("\n" + ", ".join(f"{name} {count}" for name, count in sorted(COUNTS.items())))
