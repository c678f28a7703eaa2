"""One parser per kind of source; each yields `AnnotatedImage`s and counts unusable entries."""
