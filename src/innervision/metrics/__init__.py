"""Scores and their uncertainty: pure functions of tensors and arrays. No models, no files."""
