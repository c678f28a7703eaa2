"""One parser per kind of source; each yields `AnnotatedImage`s and counts what it cannot use."""
