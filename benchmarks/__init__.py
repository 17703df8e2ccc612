"""Speed and memory of a training step, by hand: `python -m benchmarks`."""
