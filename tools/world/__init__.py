"""Makes and measures the models of the embedded world: `python -m tools.world build`."""
