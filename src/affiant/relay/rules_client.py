"""Getting files of the rules repository, each only when it is another than last time.

Nothing is verified here: the monitor does that. The relay remembers a few files with the validators
(ETag, RFC 9110, section 8.8.3) that came with them, so that a repository that has not changed costs
its server one short answer (304) for each question.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass

import httpx

from affiant.relay.http_client import CARRYING_FAILED, read_bounded
from affiant.wire.courier import Fetch, FetchAnswer

__all__ = ["RulesClient"]

_log = logging.getLogger("affiant.relay")

_TOTAL_SECONDS = 10.0  # as long as the monitor waits for it
_LONGEST_TAG = 256
_FILES_KEPT = 16
_BYTES_KEPT = 4 << 20
_OK, _NOT_MODIFIED = 200, 304


@dataclass(frozen=True, slots=True)
class _Kept:
    tag: str
    body: bytes


class RulesClient:
    """Asks one rules repository over `client`; `url` is the address of its folder.

    An answer takes ten seconds in all at most, however slowly it comes, and is cut off beyond what
    the monitor asked for. At most 16 files and 4 MiB are remembered.
    """

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self._url = url.rstrip("/") + "/"
        self._client = client
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    async def fetch(self, message: Fetch) -> FetchAnswer:
        """Return the repository's answer; status 0 when there was none that could be carried."""
        try:
            async with asyncio.timeout(_TOTAL_SECONDS):
                status, body = await self._exchange(message)
        except CARRYING_FAILED as error:
            _log.warning("get %s: %s: %s", message.path, type(error).__name__, error)
            return FetchAnswer(message.id, 0, b"")
        return FetchAnswer(message.id, status, body)

    async def _exchange(self, message: Fetch) -> tuple[int, bytes]:
        kept = self._kept.get(message.path)
        headers = {} if kept is None else {"if-none-match": kept.tag}
        async with self._client.stream("GET", self._url + message.path, headers=headers) as answer:
            body = await read_bounded(answer, message.maximum)
            if answer.status_code == _NOT_MODIFIED and kept is not None and len(kept.body) <= message.maximum:
                self._kept.move_to_end(message.path)
                return _OK, kept.body
            if answer.status_code == _OK:
                self._keep(message.path, answer.headers.get("etag", ""), body)
            return answer.status_code, body

    def _keep(self, path: str, tag: str, body: bytes) -> None:
        self._kept.pop(path, None)
        if tag and len(tag) <= _LONGEST_TAG:
            self._kept[path] = _Kept(tag, body)
        while (
            len(self._kept) > _FILES_KEPT or sum(len(one.body) for one in self._kept.values()) > _BYTES_KEPT
        ):
            self._kept.popitem(last=False)
