"""HTTP as the relay speaks it: with servers that may be slow, gone, or somebody else."""

from __future__ import annotations

import ssl

import httpx

__all__ = ["CARRYING_FAILED", "make_client", "read_bounded"]

_TIMEOUT = httpx.Timeout(20.0, connect=10.0)
_LIMITS = httpx.Limits(max_connections=8, max_keepalive_connections=2)

CARRYING_FAILED = (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError)
"""What an exchange raises that came to nothing."""


def make_client(
    *, tls_ca: str | None = None, transport: httpx.AsyncBaseTransport | None = None
) -> httpx.AsyncClient:
    """Return a client that follows no redirects, keeps no cookies and reads no proxy settings.

    So a hostile answer cannot send the relay elsewhere. `tls_ca`: a PEM file with the CAs for https,
    instead of the system's.
    """
    verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=tls_ca) if tls_ca else True
    return httpx.AsyncClient(
        timeout=_TIMEOUT,
        limits=_LIMITS,
        follow_redirects=False,
        trust_env=False,
        verify=verify,
        transport=transport,
        headers={"accept-encoding": "identity"},
    )


async def read_bounded(answer: httpx.Response, maximum: int) -> bytes:
    """Return the body of a streamed answer. Raises `httpx.HTTPError` beyond `maximum` bytes."""
    body = bytearray()
    # The raw bytes: a compressed answer could unpack into any amount of memory.
    async for chunk in answer.aiter_raw():
        body += chunk
        if len(body) > maximum:
            raise httpx.HTTPError(f"an answer of more than {maximum} bytes")
    if not 100 <= answer.status_code <= 599:
        raise httpx.HTTPError(f"status {answer.status_code}")
    return bytes(body)
