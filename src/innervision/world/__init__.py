"""The embedded world: scenes with exact truth, tiny models, and the demo that runs on them."""
