"""PAGE: results, pictures, reports and model cards from the files of a run folder; HTML opens offline."""
