"""Compute vision features once: with a frozen tower they are the same in every epoch and evaluation."""
