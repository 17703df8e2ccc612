"""Probes: from one layer's hidden states to one target's features."""

from innervision.probes.bank import BankInfo, ProbeBank, read_info, read_metadata

__all__ = ["BankInfo", "ProbeBank", "read_info", "read_metadata"]
