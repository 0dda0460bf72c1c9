"""The courier channel: messages between the monitor and its untrusted relay.

All travel in frames (`affiant.wire.frames`); answers carry the id of what they answer. Nothing here
is secret or trusted: what is posted is sealed and signed, what is fetched is verified, and a relay that
lies about a status or drops a message causes silence, which is noticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from affiant.wire.cbor import Item
from affiant.wire.fields import Fields
from affiant.wire.plain_text import plain
from affiant.wire.rules_path import is_rules_path

__all__ = [
    "MAX_BODY",
    "Ask",
    "CourierMessage",
    "Decline",
    "Fetch",
    "FetchAnswer",
    "Post",
    "PostAnswer",
    "Show",
    "read_message",
    "write_message",
]

MAX_BODY = 1 << 20
"""The longest body that the service's API takes or gives, in bytes."""

_POST, _POST_ANSWER, _ASK, _SHOW, _DECLINE, _FETCH, _FETCH_ANSWER = range(1, 8)
_MAX_ID = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Post:
    """Monitor to relay: post `body` to the service's `path`, which starts with a slash."""

    id: int
    path: str
    body: bytes


@dataclass(frozen=True, slots=True)
class PostAnswer:
    """Relay to monitor: the HTTP status (0: the service was not reached) and body of the answer."""

    id: int
    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """Relay to monitor: a relying party called `audience` asks for a passport over its nonce."""

    id: int
    nonce: bytes
    audience: str


@dataclass(frozen=True, slots=True)
class Show:
    """Monitor to relay: the passport asked for."""

    id: int
    passport: bytes


@dataclass(frozen=True, slots=True)
class Decline:
    """Monitor to relay: why there is no passport now."""

    id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """Monitor to relay: get this file of the rules repository, of `maximum` bytes at most."""

    id: int
    path: str
    maximum: int


@dataclass(frozen=True, slots=True)
class FetchAnswer:
    """Relay to monitor: the HTTP status and the file.

    Status 0: nobody was reached, or who was reached sent more than was asked for.
    """

    id: int
    status: int
    body: bytes


CourierMessage: TypeAlias = Post | PostAnswer | Ask | Show | Decline | Fetch | FetchAnswer


def write_message(message: CourierMessage) -> Item:
    """Return the item of a message, for `affiant.wire.frames.encode_frame`."""
    match message:
        case Post(number, path, body):
            return [_POST, number, path, body]
        case PostAnswer(number, status, body):
            return [_POST_ANSWER, number, status, body]
        case Ask(number, nonce, audience):
            return [_ASK, number, nonce, audience]
        case Show(number, passport):
            return [_SHOW, number, passport]
        case Decline(number, reason):
            return [_DECLINE, number, plain(reason[:256])]
        case Fetch(number, path, maximum):
            return [_FETCH, number, path, maximum]
        case FetchAnswer(number, status, body):
            return [_FETCH_ANSWER, number, status, body]


def read_message(item: Item) -> CourierMessage:
    """Return the message that an item from the channel holds.

    Guaranteed: a path is ASCII, starts with a slash and has no whitespace or control characters; a
    body is at most `MAX_BODY` bytes; a nonce is 32 bytes; what is fetched is a file that a rules
    repository may have. Raises `MalformedError` otherwise.
    """
    parts = Fields.of_array(item, "courier message")
    kind = parts.integer(0, "kind", minimum=_POST, maximum=_FETCH_ANSWER)
    number = parts.integer(1, "id", maximum=_MAX_ID)
    message: CourierMessage
    if kind == _POST:
        message = Post(number, _read_path(parts), parts.octets(3, "body", maximum=MAX_BODY))
    elif kind == _POST_ANSWER:
        status = parts.integer(2, "status", maximum=599)
        message = PostAnswer(number, status, parts.octets(3, "body", maximum=MAX_BODY))
    elif kind == _ASK:
        message = Ask(number, parts.octets(2, "nonce", size=32), parts.text(3, "audience"))
    elif kind == _SHOW:
        message = Show(number, parts.octets(2, "passport", minimum=1, maximum=MAX_BODY))
    elif kind == _DECLINE:
        message = Decline(number, parts.text(2, "reason"))
    elif kind == _FETCH:
        message = Fetch(number, _read_rules_path(parts), parts.integer(3, "maximum", maximum=MAX_BODY))
    else:
        status = parts.integer(2, "status", maximum=599)
        message = FetchAnswer(number, status, parts.octets(3, "body", maximum=MAX_BODY))
    parts.close()
    return message


def _read_path(parts: Fields) -> str:
    path = parts.text(2, "path", minimum=1)
    # A path with a line break or a host in it would let one side steer the other's HTTP request.
    if not path.startswith("/") or path.startswith("//") or any(not "!" <= sign <= "~" for sign in path):
        raise parts.error("path", "not an absolute path of visible ASCII")
    return path


def _read_rules_path(parts: Fields) -> str:
    path = parts.text(2, "path", minimum=1)
    if not is_rules_path(path):
        raise parts.error("path", "no file of a rules repository")
    return path
