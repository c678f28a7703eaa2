"""Vision features that are computed once: while the tower is frozen they are the same in every epoch and evaluation."""
