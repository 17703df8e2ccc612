"""What distilling experts into an MLLM leaves in its layers. Run it with `python -m benchmarks.distilling`."""
