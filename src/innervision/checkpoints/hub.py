"""The Hugging Face Hub, where it can be reached, and else what was downloaded before."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants

PATIENCE = 3.0
"""Seconds that the Hub has to answer, before what was downloaded is taken."""


@contextmanager
def cached_without_network(name: str) -> Iterator[None]:
    """Let the block read a model from the cache alone where the Hub cannot be reached.

    huggingface_hub would try again for minutes, once for each file, before it looks there.
    """
    before = constants.HF_HUB_OFFLINE
    if not (before or Path(name).exists() or _reachable(constants.ENDPOINT)):
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@cache
def _reachable(endpoint: str) -> bool:
    """Tell whether a server takes connections; what goes through a proxy is taken to be reachable."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY")):
        return True
    place = urlsplit(endpoint)
    try:
        socket.create_connection(
            (place.hostname, place.port or (80 if place.scheme == "http" else 443)), PATIENCE
        ).close()
    except OSError:
        return False
    return True
