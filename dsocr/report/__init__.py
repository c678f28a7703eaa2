"""Reports of runs and evaluations: one HTML file each that opens offline, and the same in Markdown."""

from dsocr.report.gallery_files import write_gallery
from dsocr.report.pages import write_comparison, write_evaluation_report, write_run_report


__all__ = ["write_comparison", "write_evaluation_report", "write_gallery", "write_run_report"]
