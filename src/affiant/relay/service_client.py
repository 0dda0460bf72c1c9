"""Posting to the attestation service, which may be slow, gone, or not the service at all."""

from __future__ import annotations

import asyncio
import logging
import re

import httpx

from affiant.relay.http_client import CARRYING_FAILED, read_bounded
from affiant.wire.courier import MAX_BODY, Post, PostAnswer

__all__ = ["ServiceClient"]

_log = logging.getLogger("affiant.relay")

_PATH = re.compile(r"/v1(/[a-z][a-z-]{0,30}){1,3}")
_TOTAL_SECONDS = 60.0
_HEADERS = {"content-type": "application/cbor"}


class ServiceClient:
    """Speaks with one service over `client`; `url` is its address without a path of its own.

    Answers are cut off at `MAX_BODY`.
    """

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self._url = url.rstrip("/")
        self._client = client

    async def post(self, message: Post) -> PostAnswer:
        """Return the service's answer; status 0 when there was none that could be carried."""
        if not _PATH.fullmatch(message.path):
            return PostAnswer(message.id, 404, b"")
        try:
            async with asyncio.timeout(_TOTAL_SECONDS):
                status, body = await self._exchange(message)
        except CARRYING_FAILED as error:
            _log.warning("post %s: %s: %s", message.path, type(error).__name__, error)
            return PostAnswer(message.id, 0, b"")
        return PostAnswer(message.id, status, body)

    async def _exchange(self, message: Post) -> tuple[int, bytes]:
        url = self._url + message.path
        async with self._client.stream("POST", url, content=message.body, headers=_HEADERS) as answer:
            return answer.status_code, await read_bounded(answer, MAX_BODY)
