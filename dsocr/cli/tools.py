"""Command lines of the smaller recipes: preparing and checking data, merging, verifying, reports, rendered lines."""

from dataclasses import dataclass

from dsocr.cli.parser import flag
from dsocr.data.importers.marks import POLICIES
from dsocr.data.importers.preparing import LEVELS
from dsocr.data.synthetic import FONTS, LETTERS
from dsocr.models.checkpoint_export import LAYOUTS


@dataclass
class PrepareArguments:
    """Arguments of recipes/prepare_data.py."""

    source: str = flag("", "file, folder or Hub dataset id", positional=True)
    output: str = flag("", "Folder to write; needed.", required=True)
    level: str = flag("line", "Cut lines, or take whole pages.", choices=list(LEVELS))
    marks: str = flag("keep", "Editorial marks such as [?] and <unclear>.", choices=list(POLICIES))
    margin: float = flag(0.0, "Around a cut line, as a share of its height.")
    on_bad_sample: str = flag("raise", "raise, or skip and count.", choices=["raise", "skip"])
    encoding: str | None = flag(None, "Of a table that is neither UTF-8 nor UTF-16: cp1251, cp1252, ...")
    image_column: str | None = flag(None, "Column of the images in a table.")
    text_column: str | None = flag(None, "Column of the texts in a table.")


@dataclass
class CheckArguments:
    """Arguments of recipes/check_data.py."""

    source: str = flag("", "a metadata file, or a folder with one", positional=True)
    model_name_or_path: str | None = flag(
        None, "Model whose tokenizer and image modes count. Default: the built-in tiny one."
    )
    max_new_tokens: int = flag(256, "--max_new_tokens of the run to come.")
    output_dir: str = flag("outputs/doctor", "Folder of doctor.json and doctor.html.")
    fix: str | None = flag(None, "Write a repaired copy there.", metavar="FOLDER")
    image_column: str | None = flag(None, "Column of the images, when it has an unusual name.")
    text_column: str | None = flag(None, "Column of the texts, when it has an unusual name.")


@dataclass
class MergeArguments:
    """Arguments of recipes/merge.py."""

    adapter: str = flag("", "folder that the training run wrote", positional=True)
    output_dir: str = flag("", "Folder to write; needed.", required=True)
    model_name_or_path: str | None = flag(None, "The 16-bit base. Default: the one that the adapter names.")
    layout: str | None = flag(
        None, "Layout of the checkpoint. Default: upstream, if the base is in that layout.", choices=list(LAYOUTS)
    )
    adapter_only: bool = flag(False, "No merging: write the adapter in upstream's names.")
    push_to_hub: bool = flag(False, "Upload the folder, as a private repository.")
    hub_model_id: str | None = flag(None, "user/name; needed by --push_to_hub.")

    def __post_init__(self):
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("--push_to_hub needs --hub_model_id user/name.")
        if self.push_to_hub and self.adapter_only:
            raise ValueError("--push_to_hub uploads a merged model; leave --adapter_only out, or upload by hand.")


@dataclass
class VerifyArguments:
    """Arguments of recipes/verify_checkpoint.py."""

    model: str = flag("", "Hub id, checkpoint folder or adapter folder", positional=True)
    model_revision: str | None = flag(None, "Branch, tag or commit of a Hub id.")
    dtype: str = flag(
        "auto",
        "Type of the weights. Default: the one that training uses here, 16 bit on a GPU and float32 on a CPU.",
        choices=["auto", "bfloat16", "float16", "float32"],
    )
    image_mode: str | None = flag(None, "tiny, small, base, large or gundam. Default: the saved one, or gundam.")
    image: str | None = flag(None, "An image of one line instead of the shipped sample; needs --text.")
    text: str | None = flag(None, "What the line says.")
    use_cpu: bool = flag(False, "Use the CPU, even for a checkpoint of a released size, which it is too slow to train.")


@dataclass
class ReportArguments:
    """Arguments of recipes/report.py."""

    runs: list[str] = flag([], "run folders", positional=True)
    output_dir: str = flag("outputs/comparison", "Folder of the comparison of several runs.")


@dataclass
class SyntheticArguments:
    """Arguments of recipes/make_synthetic.py."""

    output_dir: str = flag("", "folder to write", positional=True)
    style: str = flag("handwriting", "Kind of fonts.", choices=list(FONTS))
    lines: int = flag(500, "Number of lines.")
    scripts: list[str] = flag(list(LETTERS), "Scripts of the texts.", choices=list(LETTERS))
    max_length: int = flag(16, "Most characters of a line.")
    seed: int = flag(0, "Seed of texts, fonts and paper.")
