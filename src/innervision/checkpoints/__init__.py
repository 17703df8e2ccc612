"""Checkpoints: which one a name stands for, an expert's files, single tensors of shards."""
