"""PAGE: results, pictures, reports and model cards, each from the files of a run folder; HTML opens offline."""
