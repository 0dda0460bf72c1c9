"""Who a client is, as far as an address tells, and a token bucket for each in bounded memory."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

__all__ = ["RateLimit", "client_of"]

_CLIENTS = 4096


def client_of(address: str) -> str:
    """Return under which name a peer's address is counted.

    One host of an IPv6 network has a whole /64 of addresses to choose from (RFC 4291, section 2.5.4),
    so the network is the client. What is no IP address is counted as it stands.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed), 64), strict=False))


class RateLimit:
    """Lets each client do `burst` things at once and `per_second` of them in the long run.

    The most recently seen 4096 clients are remembered. Who has more addresses than that is bounded
    by the number of connections and workers, not here.
    """

    def __init__(self, *, burst: int, per_second: float) -> None:
        if burst < 1 or per_second <= 0:
            raise ValueError("a rate limit lets something through")
        self._burst = float(burst)
        self._per_second = per_second
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, *, now: float) -> bool:
        """Take one token of `client` at `now` (seconds of a monotonic clock); False if there is none."""
        tokens, then = self._buckets.pop(client, (self._burst, now))
        tokens = min(self._burst, tokens + max(0.0, now - then) * self._per_second)
        allowed = tokens >= 1
        self._buckets[client] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        return allowed
