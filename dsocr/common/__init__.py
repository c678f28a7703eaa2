"""Shared by every room: machine setup, errors with advice, logging, JSON files, file names of a run folder."""
