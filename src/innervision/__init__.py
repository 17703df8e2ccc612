"""InnerVision shows what a multimodal LLM sees, layer by layer."""

__version__ = "0.1.0"
