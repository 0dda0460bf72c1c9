"""What of a script's header and queries may leave the worker: plain values of a sensible size."""

from __future__ import annotations

__all__ = ["plain", "queries_are_sensible"]

_HEADER_LIST = 64
_HEADER_TEXT = 4096
_QUERY_NODES = 4096
_QUERY_DEPTH = 5


def plain(name: str, value: object) -> object:
    """Return a header value if it is a text, a number or a list of texts of sensible size."""
    match value:
        case None:
            sensible = True
        case str():
            sensible = len(value) <= _HEADER_TEXT
        case int():
            sensible = not isinstance(value, bool) and abs(value) < 1 << 53
        case list():
            sensible = len(value) <= _HEADER_LIST and all(
                isinstance(item, str) and len(item) <= 64 for item in value
            )
        case _:
            sensible = False
    if sensible:
        return value
    return {"unusable": f"{name} is neither a text, a number nor a list of texts of a sensible size"}


def queries_are_sensible(queries: object) -> bool:
    """Tell whether it is texts, numbers and dicts alone, not too many and not too deep."""
    return _nodes(queries, _QUERY_DEPTH, _QUERY_NODES) >= 0


def _nodes(value: object, depth: int, most: int) -> int:
    """Return how many of `most` values are left when `value` is counted, -1 if it is none of ours."""
    most -= 1
    match value:
        case None | bool() | int():
            return most if value is None or abs(value) < 1 << 53 else -1
        case str():
            return most if len(value) <= _HEADER_TEXT else -1
        case dict():
            for key, inner in value.items():
                if depth == 0 or most < 0 or not isinstance(key, str):
                    return -1
                most = _nodes(inner, depth - 1, most)
            return most
    return -1
