"""Evaluation: measures of a model's quality, one a file."""
