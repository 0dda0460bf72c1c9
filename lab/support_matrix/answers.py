"""Facts and answers of one look, told by how well they were read.

A fact that was read may still say of a part of itself that it was not: in the keys that are known here, which
the facts' own definitions document. Such a fact is told as read in part, with what was not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from lab.support_matrix.seen import Answer, Reading

__all__ = ["answer_of", "worse"]

_GRAVITY: Final = (Reading.READ, Reading.NOT_APPLICABLE, Reading.PART, Reading.FAILED)
_AMOUNTS: Final = {
    "compared_bytes": "{:,} bytes",
    "entries": "{:,} entries",
    "pages": "{:,} pages",
    "leaves": "{:,} mappings",
    "tracepoints": "{:,} tracepoints",
}
_MOST_TOLD: Final = 300


def answer_of(json: Mapping[str, Any]) -> Answer:
    """Return how a fact, or the answer to a query, was read; `json` is what a rule is given."""
    if "unavailable" in json:
        return Answer(Reading.FAILED, reason=_short(str(json["unavailable"])))
    if "absent" in json:
        return Answer(Reading.NOT_APPLICABLE, reason=_short(str(json["absent"])))
    missing = "; ".join(_unread(json))
    if missing:
        return Answer(Reading.PART, _amount(json), _short(missing))
    return Answer(Reading.READ, _amount(json))


def worse(one: Answer, other: Answer) -> Answer:
    """Return the answer that was read less well; the later one where both are alike."""
    return one if _GRAVITY.index(one.reading) > _GRAVITY.index(other.reading) else other


def _amount(json: Mapping[str, Any]) -> str:
    for key in ("elements", "listed", "modules"):
        if isinstance(json.get(key), list):
            return f"{len(json[key]):,}"
    for key, form in _AMOUNTS.items():
        if isinstance(json.get(key), int):
            return form.format(json[key])
    return f"{json['count']:,}" if isinstance(json.get("count"), int) else ""


def _unread(json: Mapping[str, Any]) -> Iterator[str]:
    if json.get("booting"):
        yield "the kernel says that it still boots"
    unread = json.get("unread")
    for topic, reason in unread.items() if isinstance(unread, Mapping) else ():
        yield f"{topic}: {reason}"
    yield from (str(each) for each in json.get("unjudged", ()))
    for name in json.get("unchecked_classes", ()):
        yield f"patch sites of class {name} are not judged"
    if json.get("unread_bytes"):
        yield f"{json['unread_bytes']} bytes were not there to be read"
    if json.get("unread_tables"):
        yield f"{json['unread_tables']} page tables lie outside of RAM"
    if json.get("ids_unseen"):
        yield f"processes by their ids: {json['ids_unseen']}"
    views = json.get("views")
    for name, count in views.items() if isinstance(views, Mapping) else ():
        if count is None:
            yield f"no view of modules by {name}"
    for table in json.get("tables", ()) if isinstance(json.get("tables"), list) else ():
        if table["unread"]:
            yield f"{table['unread']} entries of {table['name']}"
    for module in json.get("modules", ()) if isinstance(json.get("modules"), list) else ():
        if module["verdict"] in ("unread", "unknown"):
            yield f"module {module['name']} is {module['verdict']}: {module['reason']}"
    for key, count in json.items():
        if key.endswith("_left_out") and count:
            yield f"{key.removesuffix('_left_out')}: {count} entries left out"


def _short(text: str) -> str:
    return text if len(text) <= _MOST_TOLD else text[:_MOST_TOLD] + "…"
