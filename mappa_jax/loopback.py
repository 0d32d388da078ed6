"""Which names are of this machine alone."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`, a name or an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def asks_loopback(header: str) -> bool:
    """Whether a Host header, "name" or "name:port", names this machine.

    A page elsewhere whose name is made to point here sends that name: a server without
    a key must not answer it. What is no name at all is not this machine's either.
    """
    if not set(header).isdisjoint("/?#@\\"):
        return False
    try:
        return is_loopback(urlsplit(f"//{header}").hostname or "")
    except ValueError:  # "["
        return False
