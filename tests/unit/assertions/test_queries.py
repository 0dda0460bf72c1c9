"""Queries that a script declares: what they mean, and that every one of them is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.assertions.query import describe_query, parse_queries
from affiant.model.errors import MalformedError
from affiant.model.query import Form, Path, Reading, Structure, ValueQuery, WalkQuery

TASKS = {
    "walk": "list",
    "at": "init_task.tasks",
    "of": "struct task_struct",
    "by": "tasks",
    "most": 32768,
    "each": {"pid": {"path": "pid"}, "name": {"path": "comm", "as": "text", "bytes": 16}},
}
ENTRIES = {
    "walk": "pointers",
    "at": "sys_call_table",
    "of": "sys_call_ptr_t",
    "most": 451,
    "each": {"x": {"path": "a[1]", "as": "place"}},
}


def test_a_value_is_a_number_unless_told_otherwise():
    queries = parse_queries(
        {
            "uid": {"path": "init_task.cred.uid.val"},
            "pattern": {"path": "core_pattern", "as": "text", "bytes": 128},
            "entry": {"path": "tables[2][3].entry[1048575]", "as": "place"},
        }
    )
    assert queries == (
        ValueQuery("uid", Reading(Path("init_task", ("cred", "uid", "val")), Form.NUMBER, 0)),
        ValueQuery("pattern", Reading(Path("core_pattern", ()), Form.TEXT, 128)),
        ValueQuery("entry", Reading(Path("tables", (2, 3, "entry", 1048575)), Form.PLACE, 0)),
    )


def test_a_walk_has_a_start_a_link_and_values_of_each_element():
    assert parse_queries({"tasks": TASKS, "entries": ENTRIES}) == (
        WalkQuery(
            "tasks",
            Structure.LIST,
            Path("init_task", ("tasks",)),
            "struct task_struct",
            Path("", ("tasks",)),
            (
                ("pid", Reading(Path("", ("pid",)), Form.NUMBER, 0)),
                ("name", Reading(Path("", ("comm",)), Form.TEXT, 16)),
            ),
            32768,
        ),
        WalkQuery(
            "entries",
            Structure.POINTERS,
            Path("sys_call_table", ()),
            "sys_call_ptr_t",
            None,
            (("x", Reading(Path("", ("a", 1)), Form.PLACE, 0)),),
            451,
        ),
    )


def test_types_are_stated_and_what_may_be_missing_is_optional():
    chain = {
        "walk": "chain",
        "at": "keyboard_notifier_list.head",
        "type": "struct atomic_notifier_head",
        "of": "struct notifier_block",
        "by": "next",
        "most": 64,
        "each": {"itself": {"path": ".", "as": "place"}, "new": {"path": "new", "optional": True}},
        "optional": True,
    }
    value = {"path": "tables[1]", "type": "unsigned long [8]", "optional": True}
    assert parse_queries({"chain": chain, "value": value}) == (
        WalkQuery(
            "chain",
            Structure.CHAIN,
            Path("keyboard_notifier_list", ("head",), "struct atomic_notifier_head"),
            "struct notifier_block",
            Path("", ("next",)),
            (
                ("itself", Reading(Path("", ()), Form.PLACE, 0)),
                ("new", Reading(Path("", ("new",)), Form.NUMBER, 0, True)),
            ),
            64,
            True,
        ),
        ValueQuery("value", Reading(Path("tables", (1,), "unsigned long [8]"), Form.NUMBER, 0, True)),
    )


@pytest.mark.parametrize(
    "name", ["struct x *", "struct x **", "union y [2]", "unsigned long", "unsigned char [3] [4]", "sector_t"]
)
def test_types_are_named_as_in_c(name):
    (query,) = parse_queries({"q": {"path": "x", "type": name}})
    assert query.reading.path.type == name


def test_queries_are_described_for_people():
    first, second = parse_queries({"tasks": TASKS, "uid": {"path": "init_task.cred[0].uid"}})
    assert describe_query(first) == (
        "at most 32768 of struct task_struct (list at init_task.tasks): pid, comm"
    )
    assert describe_query(second) == "init_task.cred[0].uid as number"


def without(declared, key):
    return {name: value for name, value in declared.items() if name != key}


@pytest.mark.parametrize(
    ("declared", "complaint"),
    [
        ([], "declared as a dict"),
        ({f"q{index}": {"path": "x"} for index in range(17)}, "17 queries are declared, at most 16"),
        ({"Bad": {"path": "x"}}, "'Bad' is no name"),
        ({1: {"path": "x"}}, "1 is no name"),
        ({"q": "init_task"}, "query q: expected a dict, found str"),
        ({"q": {}}, "query q: lacks path"),
        ({"q": {"path": "x", "most": 3}}, "query q: has 'most', which means nothing here"),
        ({"q": {"path": "x", 1: 3}}, "query q: has 1, which means nothing here"),
        ({"q": {"path": "x", "as": "float"}}, "'as' is one of number"),
        ({"q": {"path": "x", "as": []}}, "'as' is one of number"),
        ({"q": {"path": "x", "as": "text"}}, "'bytes' goes with text and bytes"),
        ({"q": {"path": "x", "bytes": 8}}, "'bytes' goes with text and bytes"),
        ({"q": {"path": "x", "as": "bytes", "bytes": 4097}}, "a whole number from 1 to 4096"),
        ({"q": {"path": "x", "as": "bytes", "bytes": 0}}, "a whole number from 1 to 4096"),
        ({"q": {"path": "x", "as": "bytes", "bytes": True}}, "a whole number from 1 to 4096"),
        *[
            ({"q": {"path": path}}, "'path' is a path such as")
            for path in (
                "",
                ".x",
                "x.",
                "x..y",
                "x[",
                "x[-1]",
                "x[12345678]",
                "*x",
                "x->y",
                "x y",
                "x\n",
                7,
                "x." * 300,
            )
        ],
        ({"q": {"path": "x" + ".y" * 17}}, "17 steps, at most 16"),
        ({"q": {"path": "x[1048576]"}}, "an index above 1048575"),
        *[({"q": without(TASKS, key)}, f"query q: lacks {key}") for key in ("at", "of", "by", "each")],
        ({"q": without(TASKS, "most")}, "query q: the walk has no bound: 'most' is how many elements"),
        ({"q": TASKS | {"walk": "graph"}}, "'walk' is one of list, hlist"),
        ({"q": TASKS | {"walk": {}}}, "'walk' is one of list, hlist"),
        ({"q": TASKS | {"most": 65537}}, "'most' is a whole number from 1 to 65536"),
        ({"q": TASKS | {"most": 0}}, "'most' is a whole number from 1 to 65536"),
        ({"q": TASKS | {"of": "task struct"}}, "'of' is a C type"),
        ({"q": TASKS | {"each": {}}}, "1 to 32 values"),
        ({"q": TASKS | {"each": {f"v{i}": {"path": "x"} for i in range(33)}}}, "1 to 32 values"),
        (
            {"q": TASKS | {"most": 65536, "each": {f"v{i}": {"path": "x"} for i in range(5)}}},
            "exceed 262144 values",
        ),
        ({"q": TASKS | {"each": {"v": "pid"}}}, "query q, v: expected a dict"),
        ({"q": TASKS | {"each": {"v v": {"path": "pid"}}}}, "'v v' is no name of a value"),
        ({"q": TASKS | {"by": "tasks->next"}}, "'by' is a path"),
        ({"q": TASKS | {"deep": 1}}, "'deep', which means nothing"),
        ({"q": ENTRIES | {"by": "x"}}, "has no link, so no 'by'"),
        *[
            ({"q": {"path": "x", "type": name}}, "'type' is a C type")
            for name in (
                "",
                "struct",
                "struct a b",
                "int (*)(void)",
                "struct x ****",
                "int [-1]",
                "x; y",
                7,
                "x" * 300,
            )
        ],
        ({"q": {"path": "x", "optional": 1}}, "'optional' is True or False"),
        ({"q": TASKS | {"optional": "yes"}}, "'optional' is True or False"),
        ({"q": {"path": "."}}, "'path' is a path such as"),
        ({"q": TASKS | {"at": "."}}, "'at' is a path such as"),
        ({"q": TASKS | {"each": {"address": {"path": "x"}}}}, "'address' is set in every answer"),
        ({"q": TASKS | {"each": {"index": {"path": "x"}}}}, "'index' is set in every answer"),
        ({"q": TASKS | {"each": {"x": {"path": "x", "type": "int"}}}}, "'type', which means nothing"),
    ],
)
def test_what_is_unbounded_or_means_nothing_is_refused(declared, complaint):
    with pytest.raises(MalformedError) as caught:
        parse_queries(declared)
    assert complaint in str(caught.value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["list", "x.y", "text", "struct a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["path", "as", "bytes", "walk", "at", "of", "by", "most", "each", "q"]),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_any_declaration_is_a_query_or_refused(declared):
    try:
        queries = parse_queries(declared)
    except MalformedError:
        return
    assert len(queries) == len(declared)
