"""HTTP to servers of our own, on this machine or on a node of the cluster."""

from __future__ import annotations

import ssl
from urllib.request import HTTPSHandler, OpenerDirector, ProxyHandler, build_opener


def direct_opener() -> OpenerDirector:
    """Opens URLs past the environment's proxies, which know nothing of them; any certificate is
    taken.
    """
    trusting = HTTPSHandler(context=ssl._create_unverified_context())
    return build_opener(ProxyHandler({}), trusting)
