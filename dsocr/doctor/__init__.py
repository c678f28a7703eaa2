"""Find faults in a dataset (images, texts, splits, lengths) before they spoil a run."""

from dsocr.doctor.examination import Examination, examine, examine_quickly, write_repaired
from dsocr.doctor.findings import Finding


__all__ = ["Examination", "Finding", "examine", "examine_quickly", "write_repaired"]
