"""Draw curves and a console as SVG for HTML pages."""

import io
import re
from collections.abc import Mapping, Sequence


Points = Sequence[tuple[float, float]]
_COLOURS = ("#1f5fa8", "#b3541e", "#2f7d4f", "#7a3e9d", "#8a6d00", "#555555")


def _svg_of(figure) -> str:
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = buffer.getvalue()
    # Drop the XML head: HTML does not need it, and its DTD is a web address.
    return svg[svg.index("<svg") :]


def draw_curves(curves: Mapping[str, Points], title: str, *, from_zero: bool = False) -> str:
    """Draw one small plot of some curves over steps.

    Args:
        curves: Points `(step, value)` by name; empty ones are left out.
        title: Name of the values, with their unit.
        from_zero: Start the vertical axis at 0.

    Returns:
        An `<svg>` element, or `""` when there is nothing to draw.
    """
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return ""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "dsocr"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4.4, 2.6))
    for (name, points), colour in zip(curves.items(), _COLOURS * len(curves), strict=False):
        steps, values = zip(*points, strict=True)
        axes.plot(
            steps, values, color=colour, linewidth=1.4, label=name, marker="o" if len(points) < 12 else None, ms=3
        )
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(color="#dddddd", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if from_zero:
        axes.set_ylim(bottom=0)
    if len(curves) > 1:
        axes.legend(fontsize=7, frameon=False)
    return _svg_of(figure)


def draw_console(lines: Sequence[str], title: str) -> str:
    """Draw log lines as a terminal window: an `<svg>` element without web addresses."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=118, file=io.StringIO(), color_system=None, legacy_windows=False)
    for line in lines:
        console.print(Text(line), soft_wrap=False)
    svg = console.export_svg(title=title, unique_id="console")
    # rich loads its font from a server; drop that, any monospaced font will do.
    svg = re.sub(r"@font-face\s*\{.*?\}", "", svg, flags=re.DOTALL)
    return re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
