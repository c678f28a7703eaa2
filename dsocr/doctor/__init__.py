"""A doctor for datasets: what is wrong with images, texts, splits and lengths, before a run is lost in it."""

from dsocr.doctor.examination import Examination, examine, examine_quickly, write_repaired
from dsocr.doctor.findings import Finding


__all__ = ["Examination", "Finding", "examine", "examine_quickly", "write_repaired"]
