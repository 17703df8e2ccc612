"""All that the original code's layout, checkpoints and protocol need (OLA-VLM, arXiv:2412.09585)."""
