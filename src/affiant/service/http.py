"""The service's HTTP door: takes bytes within bounds, asks the service, gives bytes back.

Clients are hostile until a message proves otherwise, so every request is bounded in size, time and
rate before anything looks at it. Refusals are one line of text and never tell about the inside.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import anyio
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from affiant.model.errors import EvidenceError, ForgedError, UnavailableError
from affiant.service.attestation_service import AttestationService
from affiant.service.published_rules import PublishedRules
from affiant.service.rate_limit import RateLimit, client_of
from affiant.service.settings import Limits
from affiant.wire.rules_path import RULES_PREFIX

__all__ = ["build_app"]

_log = logging.getLogger("affiant.service")

_CBOR = "application/cbor"
_TEXT = "text/plain; charset=utf-8"
_FILE = "application/octet-stream"
_QUEUE_FACTOR = 8  # requests that may wait for a worker, for each worker

Operation = Callable[[bytes, int], bytes]


@dataclass(frozen=True, slots=True)
class _Refusal(Exception):  # noqa: N818  a refusal is an answer, not an error of ours
    """An answer that ends a request early; `detail` is for the log, `reason` for the client."""

    status: int
    reason: str
    detail: str = ""


def build_app(
    service: AttestationService, *, limits: Limits, clock: Callable[[], float] = time.time
) -> Starlette:
    """Return the ASGI application of `service`; `clock` gives seconds since the epoch."""
    door = _Door(service, limits, clock)
    operations: dict[str, Operation] = {
        "/v1/challenge": lambda body, now: service.challenge(body, now=now),
        "/v1/enrolment": lambda body, now: service.enrolment(body, now=now),
        "/v1/enrolment/proof": lambda body, now: service.enrolment_proof(body, now=now),
        "/v1/session": lambda body, now: service.session(body, now=now),
        "/v1/heartbeat": lambda body, now: service.heartbeat(body, now=now),
    }
    routes = [
        Route(path, door.endpoint(operation), methods=["POST"]) for path, operation in operations.items()
    ]
    routes.append(Route("/v1/root", door.root, methods=["GET"]))
    if service.rules is not None:
        routes.append(Route(f"{RULES_PREFIX}/{{path:path}}", door.rules(service.rules), methods=["GET"]))
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False  # a path is one of the API's, or nothing
    return app


class _Door:
    def __init__(self, service: AttestationService, limits: Limits, clock: Callable[[], float]) -> None:
        self._service = service
        self._limits = limits
        self._clock = clock
        self._rate = RateLimit(burst=limits.burst, per_second=limits.requests_per_second)
        self._rules_rate = RateLimit(burst=limits.rules_burst, per_second=limits.rules_per_second)
        self._workers: anyio.CapacityLimiter | None = None
        self._under_way = 0
        self._bodies: Counter[str] = Counter()

    def endpoint(self, operation: Operation) -> Callable[[Request], object]:
        async def answer(request: Request) -> Response:
            started = time.monotonic()
            reason = ""
            try:
                body = await self._read_body(request)
                content = await self._work(operation, body)
                response = Response(content, status_code=200 if content else 204, media_type=_CBOR)
            except _Refusal as refusal:
                reason = refusal.detail or refusal.reason
                response = _refuse(refusal.status, refusal.reason)
            except ClientDisconnect:
                reason = "the client went away"
                response = _refuse(400, reason)
            except Exception as error:  # noqa: BLE001  the last line of defence before a client
                # Whatever it is, the client learns nothing of it, and the log everything.
                reason = f"{type(error).__name__}: {error}"
                _log.exception("a request failed")
                response = _refuse(500, "the service failed")
            self._tell(request, response.status_code, reason, started)
            return response

        return answer

    async def root(self, request: Request) -> Response:
        """The root certificate, for convenience: trust in it must come from elsewhere."""
        started = time.monotonic()
        if self._rate.take(client_of(_client(request)), now=time.monotonic()):
            pem = self._service.authority.root.public_bytes(Encoding.PEM)
            response = Response(pem, media_type="application/x-pem-file")
        else:
            response = _refuse(429, "too many requests")
        self._tell(request, response.status_code, "", started)
        return response

    def rules(self, published: PublishedRules) -> Callable[[Request], object]:
        """The files of the rules repository, static: monitors verify them, so anyone may cache them."""

        async def answer(request: Request) -> Response:
            started = time.monotonic()
            path = request.path_params["path"]
            if not self._rules_rate.take(client_of(_client(request)), now=time.monotonic()):
                response = _refuse(429, "too many requests")
            elif (file := published.file(path)) is None:
                # A cache that remembers a 404, as it may, would hide the next root from monitors.
                headers = {"cache-control": "no-store"}
                response = Response("no such file\n", status_code=404, media_type=_TEXT, headers=headers)
            else:
                headers = {"etag": file.tag, "cache-control": file.caching}
                if _has(request, file.tag):
                    response = Response(status_code=304, headers=headers)
                else:
                    response = Response(file.body, media_type=_FILE, headers=headers)
            # Asked for every few seconds by every monitor, and the same answer each time.
            level = logging.INFO if response.status_code == 429 else logging.DEBUG
            self._tell(request, response.status_code, "", started, level=level)
            return response

        return answer

    async def _read_body(self, request: Request) -> bytes:
        if not self._rate.take(client_of(_client(request)), now=time.monotonic()):
            raise _Refusal(429, "too many requests")
        limit = self._limits.body_bytes
        declared = request.headers.get("content-length", "")
        # A length that is no number never gets here; one that is too large need not be read.
        if declared.isdigit() and len(declared) < 20 and int(declared) > limit:
            raise _Refusal(413, f"a body of more than {limit} bytes")
        body = bytearray()
        client = client_of(_client(request))
        self._bodies[client] += 1
        try:
            if (
                self._bodies[client] > self._limits.bodies_per_client
                or self._bodies.total() > self._limits.bodies
            ):
                raise _Refusal(503, "the service is busy")
            async with asyncio.timeout(self._limits.body_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        raise _Refusal(413, f"a body of more than {limit} bytes")
        except TimeoutError:
            raise _Refusal(408, "the body took too long") from None
        finally:
            self._bodies[client] -= 1
            if not self._bodies[client]:
                del self._bodies[client]  # or every client there ever was is remembered
        return bytes(body)

    async def _work(self, operation: Operation, body: bytes) -> bytes:
        if self._under_way >= self._limits.workers * _QUEUE_FACTOR:
            raise _Refusal(503, "the service is busy")
        if self._workers is None:
            self._workers = anyio.CapacityLimiter(self._limits.workers)
        self._under_way += 1
        try:
            # The one place where the service looks at a clock.
            now = int(self._clock())
            return await anyio.to_thread.run_sync(operation, body, now, limiter=self._workers)
        except EvidenceError as error:
            raise _Refusal(403 if isinstance(error, ForgedError) else 400, str(error)) from error
        except UnavailableError as error:
            # Which database, which file, which disk is full: that is for the log alone.
            raise _Refusal(503, "the service cannot answer at the moment", str(error)) from error
        finally:
            self._under_way -= 1

    def _tell(
        self, request: Request, status: int, reason: str, started: float, *, level: int = logging.INFO
    ) -> None:
        if not _log.isEnabledFor(level):
            return
        fields = {
            "method": request.method,
            "path": request.url.path,
            "client": _client(request),
            "status": status,
            "reason": reason,
            "ms": round(1000 * (time.monotonic() - started), 1),
        }
        _log.log(level, "request", extra={"fields": fields})


def _refuse(status: int, reason: str) -> Response:
    line = " ".join(reason.split())[:500]
    # The rest of a body that was refused is not read: the connection ends with the answer.
    return Response(line + "\n", status_code=status, media_type=_TEXT, headers={"connection": "close"})


def _has(request: Request, tag: str) -> bool:
    """Tell whether the client says that it has what `tag` stands for (RFC 9110, section 13.1.2)."""
    stated = request.headers.get("if-none-match", "")
    return tag in (each.strip().removeprefix("W/") for each in stated.split(","))


def _client(request: Request) -> str:
    return request.client.host if request.client else ""
