"""Probes: from one layer's hidden states to one target's features."""

from innervision.probes.bank import ProbeBank, read_metadata

__all__ = ["ProbeBank", "read_metadata"]
