"""The notebook for Colab and Kaggle, executed as Jupyter executes it, with the tiny model and lines in the place of pages."""

import os
import sys

import nbformat
import pytest
from helpers.paths import REPOSITORY
from nbclient import NotebookClient

from dsocr.data.synthetic import generate_lines
from dsocr.models.loading import TINY_BASE


NOTEBOOK = REPOSITORY / "notebooks" / "your_handwriting.ipynb"
SETTINGS = """
MODEL = {model!r}
SEGMENT = False
MAX_NEW_TOKENS = 8
TRAINING = (
    "--max_steps 2 --validation_fraction 0.3 --eval_strategy no --save_strategy no --load_best_model_at_end false "
    "--per_device_train_batch_size 2 --disable_tqdm true"
)
"""


def test_it_is_stored_without_outputs():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs") and not cell.get("execution_count")


@pytest.mark.slow
def test_it_runs_from_photographs_to_a_merged_model(tmp_path, monkeypatch):
    # Print, which the tiny model knows: the preflight stops a named model whose first loss is above chance.
    stream = generate_lines("print", seed=5, min_length=2, max_length=8)
    lines = [next(stream) for _ in range(14)]
    for folder, part in (("photos", lines[:10]), ("test_photos", lines[10:14])):
        (tmp_path / folder).mkdir()
        for number, line in enumerate(part):
            line.image.save(tmp_path / folder / f"{number}.png")
    book = nbformat.read(NOTEBOOK, as_version=4)
    book.cells = [cell for cell in book.cells if "install" not in cell.metadata.get("tags", [])]
    for cell in book.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += SETTINGS.format(model=str(TINY_BASE))
        elif cell.source.startswith("def corrected"):
            # A person corrects the drafts.
            cell.source = (
                "import csv\n"
                "for name in ('train', 'test'):\n"
                "    rows = list(csv.DictReader((WORK / name / 'review.csv').open(encoding='utf-8')))\n"
                "    with (WORK / name / 'corrected.csv').open('w', encoding='utf-8', newline='') as file:\n"
                "        writer = csv.DictWriter(file, rows[0])\n"
                "        writer.writeheader()\n"
                "        writer.writerows(row | {'text': row['text'] or 'word'} for row in rows)\n\n"
            ) + cell.source
    monkeypatch.setenv("DSOCR_HOME", str(REPOSITORY))
    # The kernel of this environment, whatever kernels the machine has.
    monkeypatch.setenv("PATH", os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))
    NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(
        output.get("text", "") for cell in book.cells for output in cell.get("outputs", []) if "text" in output
    )
    assert (
        "corrected.csv is missing" not in printed
        and "held-out lines; adapter in" in printed
        and "merged model in" in printed
    )
    for name in ("adapter/report.html", "evaluation/report.html", "merged/model.safetensors"):
        assert (tmp_path / "work" / name).is_file(), name
