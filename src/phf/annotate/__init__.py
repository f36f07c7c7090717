"""Scores of a corpus: a sidecar of one score for each segment."""
