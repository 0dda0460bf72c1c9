"""Queries as a script declares them: JSON-like values in, checked and bounded queries out.

    {"path": "init_task.cred.uid.val"}                           a value, told as a number
    {"path": "core_pattern", "as": "text", "bytes": 128}         told otherwise: see `Form`
    {"walk": "list", "at": "init_task.tasks", "of": "struct task_struct", "by": "tasks", "most": 32768,
     "each": {"pid": {"path": "pid"}, "name": {"path": "comm", "as": "text", "bytes": 16}}}

A path is a symbol, then members and indices: `runqueues[0].curr.comm`, `sys_call_table[59]`. In
`each` and `by`, it is members of the element, and "." is the element itself. A member that stands
behind a pointer is reached with a dot, too; the index of a per-CPU variable is a processor's.

    "type": "struct proto"      what the symbol of `path` or `at` is, where the reference does not say
    "optional": True            a kernel without it answers {"absent": ...} (None in `each`), and the
                                rule is judged; otherwise the rule is not applicable there

What a query may name is not checked here: whether this kernel has such a symbol or member is known
only to whoever resolves it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

from affiant.model.errors import MalformedError
from affiant.model.query import Form, Path, Query, Reading, Structure, ValueQuery, WalkQuery

__all__ = ["QueryError", "describe_query", "parse_queries", "query_identity"]

_MOST_QUERIES: Final = 16
_MOST_FIELDS: Final = 32
_MOST_STEPS: Final = 16
_MOST_ELEMENTS: Final = 65536
_MOST_VALUES: Final = 1 << 18
_MOST_BYTES: Final = 4096
_MOST_INDEX: Final = (1 << 20) - 1
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_MEMBER: Final = r"[A-Za-z_][A-Za-z0-9_]{0,127}"
_PATH: Final = re.compile(rf"{_MEMBER}(\[[0-9]{{1,7}}\])*(\.{_MEMBER}(\[[0-9]{{1,7}}\])*)*\Z")
_STEP: Final = re.compile(rf"{_MEMBER}|\[[0-9]+\]")
_INTEGER: Final = r"(unsigned |signed )?(char|short|int|long|long long)|unsigned|signed"
_TYPE: Final = re.compile(
    rf"({_INTEGER}|((struct|union|enum) )?(?!(struct|union|enum)\b){_MEMBER})"
    rf"( \*{{1,3}})?( ?\[[0-9]{{1,7}}\]){{0,3}}\Z"
)
_LONGEST_TYPE: Final = 256
_THIS: Final = "."
_LONGEST_PATH: Final = 512
_LINKED: Final = frozenset({Structure.LIST, Structure.HLIST, Structure.CHAIN, Structure.RBTREE})
_SIZED: Final = frozenset({Form.TEXT, Form.BYTES})
_READING_KEYS: Final = frozenset({"path", "as", "bytes", "optional"})
_WALK_KEYS: Final = frozenset({"walk", "at", "of", "by", "most", "each"})
_FURTHER_WALK_KEYS: Final = frozenset({"type", "optional"})
_TAKEN: Final = frozenset({"address", "index"})


class QueryError(MalformedError):
    """A declaration that is no query; `about` leads to the fault: the query's name, then keys in it."""

    def __init__(self, where: Sequence[str], text: str, *about: str) -> None:
        name = f"query {', '.join(where)}: " if where else ""
        super().__init__(name + text)
        self.about = (*where, *about)


def parse_queries(declared: object) -> tuple[Query, ...]:
    """Return the queries that a script declares, a dict from name to declaration, in its order.

    When it returns:

    - there are at most 16, each name a-z, 0-9 and _;
    - every path is a symbol or member with at most 16 steps, every index below 2^20;
    - every walk visits at most 65,536 elements, reads 1 to 32 values of each, at most 262,144 in all;
    - a walk over linked elements names the member that links them, and no other walk does;
    - texts and bytes have a size of 1 to 4,096 bytes, and nothing else has one;
    - no value of an element is called `address` or `index`, which every answer sets itself;
    - no declaration has a key that means nothing.

    Raises `QueryError` that names the query, and says what would be right.
    """
    if not isinstance(declared, Mapping):
        raise QueryError((), "queries are declared as a dict from name to query")
    if len(declared) > _MOST_QUERIES:
        raise QueryError((), f"{len(declared)} queries are declared, at most {_MOST_QUERIES} are answered")
    return tuple(_query(name, value) for name, value in declared.items())


def describe_query(query: Query) -> str:
    """Return what a query reads, in a few words for people."""
    if isinstance(query, ValueQuery):
        return f"{_written(query.reading.path)} as {query.reading.form.value}"
    values = ", ".join(_written(reading.path) for _, reading in query.fields)
    place = f"{query.structure.value} at {_written(query.start)}"
    return f"at most {query.most} of {query.element} ({place}): {values}"


def query_identity(query: Query) -> str:
    """Return a digest (hex) of all that a query asks, its name aside: equal ones have equal answers."""
    asked = dataclasses.asdict(query)
    del asked["name"]
    text = json.dumps(asked, sort_keys=True, default=lambda member: member.value)
    return hashlib.sha256(text.encode()).hexdigest()


def _written(path: Path) -> str:
    steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path.steps)
    return f"{path.root}{steps}" if path.root else steps.removeprefix(".") or "the element itself"


def _query(name: object, value: object) -> Query:
    if not isinstance(name, str) or not _NAME.match(name):
        raise QueryError((), f"{name!r} is no name of a query: use a-z, 0-9 and _")
    where = (name,)
    if not isinstance(value, Mapping):
        raise QueryError(where, f"expected a dict, found {type(value).__name__}")
    if "walk" in value:
        return _walk(name, where, value)
    return ValueQuery(name, _reading(where, value, relative=False))


def _walk(name: str, where: Sequence[str], value: Mapping[object, object]) -> WalkQuery:
    structures = [structure.value for structure in Structure]
    if value["walk"] not in structures:
        raise QueryError(where, f"'walk' is one of {', '.join(structures)}", "walk")
    structure = Structure(value["walk"])
    linked = structure in _LINKED
    required = _WALK_KEYS if linked else _WALK_KEYS - {"by"}
    _keys(where, value, required=required, allowed=_WALK_KEYS | _FURTHER_WALK_KEYS)
    if not linked and "by" in value:
        raise QueryError(where, f"a walk over {structure.value} has no link, so no 'by'", "by")
    element = _type(where, "of", value["of"])
    most = _number(where, "most", value["most"], _MOST_ELEMENTS)
    fields = value["each"]
    if not isinstance(fields, Mapping) or not 0 < len(fields) <= _MOST_FIELDS:
        raise QueryError(where, f"'each' is a dict of 1 to {_MOST_FIELDS} values", "each")
    if most * len(fields) > _MOST_VALUES:
        raise QueryError(
            where, f"{most} elements with {len(fields)} values exceed {_MOST_VALUES} values", "most"
        )
    return WalkQuery(
        name=name,
        structure=structure,
        start=_path(where, "at", value["at"], relative=False, stated=_stated(where, value)),
        element=element,
        link=_path(where, "by", value["by"], relative=True) if linked else None,
        fields=tuple(_field(where, field, reading) for field, reading in fields.items()),
        most=most,
        optional=_optional(where, value),
    )


def _field(where: Sequence[str], name: object, value: object) -> tuple[str, Reading]:
    if not isinstance(name, str) or not _NAME.match(name):
        raise QueryError(where, f"{name!r} is no name of a value: use a-z, 0-9 and _", "each", str(name))
    if name in _TAKEN:
        raise QueryError(where, f"{name!r} is set in every answer, call the value otherwise", "each", name)
    if not isinstance(value, Mapping):
        raise QueryError((*where, name), f"expected a dict, found {type(value).__name__}")
    return name, _reading((*where, name), value, relative=True)


def _reading(where: Sequence[str], value: Mapping[object, object], *, relative: bool) -> Reading:
    allowed = _READING_KEYS if relative else _READING_KEYS | {"type"}
    _keys(where, value, required=frozenset({"path"}), allowed=allowed)
    forms = [form.value for form in Form]
    stated = value.get("as", Form.NUMBER.value)
    if stated not in forms:
        raise QueryError(where, f"'as' is one of {', '.join(forms)}", "as")
    form = Form(stated)
    if (form in _SIZED) != ("bytes" in value):
        raise QueryError(where, "'bytes' goes with text and bytes, and with nothing else", "bytes")
    size = _number(where, "bytes", value["bytes"], _MOST_BYTES) if form in _SIZED else 0
    path = _path(where, "path", value["path"], relative=relative, stated=_stated(where, value))
    return Reading(path, form, size, _optional(where, value))


def _path(where: Sequence[str], key: str, value: object, *, relative: bool, stated: str = "") -> Path:
    if relative and value == _THIS:
        return Path("", ())
    if not isinstance(value, str) or len(value) > _LONGEST_PATH or not _PATH.match(value):
        raise QueryError(where, f"{key!r} is a path such as 'init_task.cred.uid.val'", key)
    steps: list[str | int] = [
        int(step[1:-1]) if step.startswith("[") else step for step in _STEP.findall(value)
    ]
    root = "" if relative else str(steps.pop(0))
    if len(steps) > _MOST_STEPS:
        raise QueryError(where, f"{key!r} has {len(steps)} steps, at most {_MOST_STEPS} are followed", key)
    if any(isinstance(step, int) and step > _MOST_INDEX for step in steps):
        raise QueryError(where, f"{key!r} has an index above {_MOST_INDEX}", key)
    return Path(root, tuple(steps), stated)


def _stated(where: Sequence[str], value: Mapping[object, object]) -> str:
    return _type(where, "type", value["type"]) if "type" in value else ""


def _type(where: Sequence[str], key: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_TYPE or not _TYPE.match(value):
        raise QueryError(where, f"{key!r} is a C type such as 'struct task_struct'", key)
    return value


def _optional(where: Sequence[str], value: Mapping[object, object]) -> bool:
    optional = value.get("optional", False)
    if not isinstance(optional, bool):
        raise QueryError(where, "'optional' is True or False", "optional")
    return optional


def _number(where: Sequence[str], key: str, value: object, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
        raise QueryError(where, f"{key!r} is a whole number from 1 to {most}", key)
    return value


def _keys(
    where: Sequence[str], value: Mapping[object, object], *, required: frozenset[str], allowed: frozenset[str]
) -> None:
    missing = sorted(required - value.keys())
    unknown = sorted(value.keys() - allowed, key=repr)
    if missing == ["most"]:
        raise QueryError(
            where, f"the walk has no bound: 'most' is how many elements are visited, up to {_MOST_ELEMENTS}"
        )
    if missing:
        raise QueryError(where, f"lacks {', '.join(missing)}")
    if unknown:
        raise QueryError(
            where, f"has {', '.join(map(repr, unknown))}, which means nothing here", str(unknown[0])
        )
