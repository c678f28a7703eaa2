"""Render report pages: a run, an evaluation, several runs side by side."""

import base64
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from dsocr.common.files import load_json, write_text
from dsocr.common.run_files import EVALUATION_NAME, GALLERY_FOLDER, REPORT_HTML, REPORT_MARKDOWN
from dsocr.data.image_files import UnreadableImageError
from dsocr.data.texts import name_script
from dsocr.reading.metrics import mark_differences
from dsocr.report.hints import suggest_next_steps
from dsocr.report.pictures import make_thumbnail
from dsocr.report.plots import draw_console, draw_curves
from dsocr.report.run_folder import CURVES, RunFolder, load_run_folder


COMPARISON_NAME = "comparison"
CONSOLE_LINES = 20
WORST_SHOWN = 20


def _show_character(character: str) -> str:
    """Make a character readable: name the script, so that look-alikes of two scripts differ."""
    if not character or character.isspace():
        return "blank" if character else "(nothing)"
    script = name_script(character)
    return character if script == "none" else f"{character} ({script})"


def show_in_markdown(text: Any) -> str:
    """Make a text safe inside Markdown: no HTML, no end of the cell or of the line."""
    plain = " ".join(str(text).split()).replace("|", "\\|")
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _environment():
    from jinja2 import DictLoader, Environment, StrictUndefined

    folder = files("dsocr.report") / "templates"
    templates = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir() if ".j2" in file.name}
    environment = Environment(
        loader=DictLoader(templates),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["rate"] = lambda value: f"{value:.3f}"
    environment.filters["interval"] = lambda metrics: f"{metrics['cer_low']:.3f}-{metrics['cer_high']:.3f}"
    environment.filters["cell"] = show_in_markdown
    environment.filters["character"] = _show_character
    environment.globals["marked"] = mark_differences
    return environment


def render_page(template: str, path: Path, **fields: Any) -> Path:
    """Fill a template from `templates/`; returns the path of the page."""
    return write_text(path, _environment().get_template(template).render(**fields).rstrip() + "\n")


def _embed(content: bytes, kind: str = "jpeg") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def embed_image(image: Any) -> str:
    """Encode an image as a data URI, at most 900 x 240 pixels; `""` when it cannot be opened any more."""
    try:
        return _embed(make_thumbnail(image))
    except UnreadableImageError:
        return ""


def _curves(runs: dict[str, RunFolder]) -> list[str]:
    drawn = [
        draw_curves({name: run.curve(key) for name, run in runs.items()}, title, from_zero=key != "loss")
        for key, title in CURVES.items()
    ]
    return [svg for svg in drawn if svg]


def _hints(run: RunFolder) -> list[str]:
    if not run.results:
        return ["The run did not end; the same command with --resume_from_checkpoint goes on."]
    return suggest_next_steps(
        [value for _, value in run.curve("loss")],
        [value for _, value in run.curve("eval_cer")],
        base=run.results["base"],
        adapter=run.results["adapter"],
        shuffled=run.results["adapter_shuffled_images"],
        train_sample=run.results.get("train_sample"),
        train_lines=run.data.get("train_lines"),
    )


def write_run_report(folder: str | Path) -> Path:
    """Write `report.html` and `report.md` of a training run; returns the path of `report.html`.

    Args:
        folder: The run folder; its files are the only source.

    Raises:
        FileNotFoundError: when the folder is not a run folder.
    """
    run = load_run_folder(folder)
    gallery = [
        {**entry, "uri": _embed((run.path / GALLERY_FOLDER / Path(entry["image"]).name).read_bytes())}
        for entry in run.gallery
    ]
    fields = {"run": run, "results": run.results, "data": run.data, "hints": _hints(run), "gallery": gallery}
    console = draw_console(run.log[:CONSOLE_LINES], str(run.path.name)) if run.log else ""
    render_page("run.md.j2", run.path / REPORT_MARKDOWN, **fields)
    html = run.path / REPORT_HTML
    return render_page("run.html.j2", html, **fields, curves=_curves({run.path.name: run}), console=console)


def write_evaluation_report(folder: str | Path, images: list | None = None) -> Path:
    """Write `report.html` and `report.md` of an evaluation; returns the path of `report.html`.

    Args:
        folder: Folder with `evaluation.json`.
        images: Images of the dataset, for pictures of the worst lines.
    """
    folder = Path(folder)
    judged = load_json(folder / EVALUATION_NAME)
    last = list(judged["readers"])[-1] if "adapter" not in judged["readers"] else "adapter"
    worst = judged["readers"][last]["worst"][:WORST_SHOWN]
    pictures = {entry["index"]: embed_image(images[entry["index"]]) for entry in worst} if images is not None else {}
    fields = {"judged": judged, "reader": last, "worst": worst}
    render_page("evaluation.md.j2", folder / REPORT_MARKDOWN, **fields)
    return render_page("evaluation.html.j2", folder / REPORT_HTML, **fields, pictures=pictures)


def write_comparison(folders: list[str | Path], output_dir: str | Path) -> Path:
    """Write `comparison.html` and `comparison.md` of several runs; returns the path of `comparison.html`.

    Args:
        folders: Run folders.
        output_dir: Output folder.
    """
    runs = [load_run_folder(folder) for folder in folders]
    names = _unique_names(runs, lambda run: run.path.resolve())
    named = dict(zip(names, runs, strict=True))
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    render_page("comparison.md.j2", output_dir / f"{COMPARISON_NAME}.md", runs=named)
    path = output_dir / f"{COMPARISON_NAME}.html"
    return render_page("comparison.html.j2", path, runs=named, curves=_curves(named))


def _unique_names(runs: list[RunFolder], key: Callable[[RunFolder], Path]) -> list[str]:
    short = [key(run).name for run in runs]
    return [str(run.path) if short.count(name) > 1 else name for run, name in zip(runs, short, strict=True)]
