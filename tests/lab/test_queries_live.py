"""Queries on a real kernel agree with what the guest says of itself, and stay true under load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from affiant.assertions.bundle import make_bundle, packaged_library
from affiant.assertions.engine import Engine
from affiant.assertions.query import parse_queries
from affiant.kernel.queries.answers import answer_queries
from affiant.model.outcome import AssertionResult, Outcome
from lab.guests import load_modules, unload_modules
from lab.live_guest import LiveGuest
from lab.looking import facts_of
from lab.monitoring import watch_over

LOOKS_UNDER_LOAD = 60
_HEALTHY = (Outcome.HOLDS, Outcome.INCONCLUSIVE)
Run = Callable[..., str]


@pytest.fixture(scope="module")
def live(supported: LiveGuest) -> LiveGuest:
    return supported


@pytest.fixture(scope="module")
def run(live: LiveGuest) -> Run:
    """What the guest says of itself: runs a command at its console."""
    return live.lab.console.run


def ask(live: LiveGuest, **declared: Any) -> dict[str, Any]:
    (query,) = parse_queries({"q": declared})
    answer = answer_queries(live.refreshed(), {"q": query}, seconds=5.0)["q"].to_json()
    assert "unavailable" not in answer
    assert "absent" not in answer
    return answer


def processes(run: Run) -> set[int]:
    """What the guest lists now; what it lists before and after a look, is there in between."""
    return {int(name) for name in run("cd /proc; echo [0-9]*").split()}


def test_a_chain_of_pointers_file_systems(live: LiveGuest, run: Run) -> None:
    """Newer kernels keep file systems otherwise; a chain that every kernel has is in the next test."""
    if "next" not in {
        member.name for member in live.guest.program.drgn.type("struct file_system_type").members
    }:
        pytest.skip("this kernel keeps file systems otherwise")
    found = ask(
        live,
        walk="chain",
        at="file_systems",
        type="struct file_system_type *",
        of="struct file_system_type",
        by="next",
        most=256,
        each={"name": {"path": "name", "as": "text", "bytes": 32}},
    )
    listed = run("cat /proc/filesystems").split()
    assert [each["name"] for each in found["elements"]] == [name for name in listed if name != "nodev"]


def test_a_chain_of_notifiers_traps(live: LiveGuest) -> None:
    found = ask(
        live,
        walk="chain",
        at="die_chain.head",
        type="struct atomic_notifier_head",
        of="struct notifier_block",
        by="next",
        most=64,
        each={"call": {"path": "notifier_call", "as": "place"}, "priority": {"path": "priority"}},
    )["elements"]
    calls = [each["call"]["symbol"] for each in found]
    assert {"kprobe_exceptions_notify+0x0", "hw_breakpoint_exceptions_notify+0x0"} <= set(calls)
    priorities = [each["priority"] for each in found]
    assert priorities == sorted(priorities, reverse=True)


def test_per_cpu_variables_run_queues(live: LiveGuest, run: Run) -> None:
    declared = {"at": "runqueues", "of": "struct rq", "each": {"cpu": {"path": "cpu"}}}
    found = ask(live, walk="per_cpu", most=64, **declared)["elements"]
    assert [each["cpu"] for each in found] == [each["index"] for each in found]
    assert len(found) == live.lab.machine.cpus
    assert ask(live, path="runqueues[1].cpu") == {"value": 1}
    idle = ask(live, path="runqueues[1].idle.comm", **{"as": "text", "bytes": 16})
    assert idle == {"value": "swapper/1"}


def test_an_idr_process_ids(live: LiveGuest, run: Run) -> None:
    """Every process that the guest lists has its number in the tree of process ids."""
    before = processes(run)
    found = ask(
        live,
        walk="xarray",
        at="init_pid_ns.idr",
        of="struct pid",
        most=4096,
        each={"number": {"path": "numbers[0].nr"}, "level": {"path": "level"}},
    )["elements"]
    assert all(each["index"] == each["number"] for each in found)
    assert before & processes(run) <= {each["number"] for each in found}


@pytest.mark.parametrize(("tree", "kind"), [("vmap_area_root", "used"), ("free_vmap_area_root", "free")])
def test_a_tree_is_in_order_kernel_addresses(live: LiveGuest, tree: str, kind: str) -> None:
    """Areas of kernel virtual memory hang in trees by address; those in use, in many since Linux 6.9."""
    if live.guest.program.find(tree) is None:
        assert kind == "used"
        pytest.skip("this kernel has no such tree")
    found = ask(
        live,
        walk="rbtree",
        at=tree,
        type="struct rb_root",
        of="struct vmap_area",
        by="rb_node",
        most=65536,
        each={"start": {"path": "va_start"}, "end": {"path": "va_end"}},
    )["elements"]
    starts = [each["start"] for each in found]
    assert len(starts) > (50 if kind == "used" else 1)
    assert starts == sorted(starts)
    assert all(each["start"] < each["end"] for each in found)


def test_an_array_of_pointers_character_devices(live: LiveGuest, run: Run) -> None:
    found = ask(
        live,
        walk="pointers",
        at="chrdevs",
        type="struct char_device_struct * [255]",
        of="struct char_device_struct",
        most=255,
        each={"name": {"path": "name", "as": "text", "bytes": 64}},
    )["elements"]
    names = {each["name"] for each in found}
    assert {"mem", "misc"} <= names
    assert names <= set(run("cat /proc/devices").split())


def test_bit_fields_and_texts_of_the_first_process(live: LiveGuest) -> None:
    assert ask(live, path="init_task.comm", **{"as": "text", "bytes": 16}) == {"value": "swapper/0"}
    assert ask(live, path="init_task.cred.uid.val") == {"value": 0}
    assert ask(live, path="init_task.sched_reset_on_fork") == {"value": 0}
    place = ask(live, path="init_task.cred", **{"as": "place"})["value"]
    assert (place["kind"], place["symbol"]) == ("data", "init_cred+0x0")


def test_a_list_of_structures_tasks(live: LiveGuest, run: Run) -> None:
    """Every process that the guest lists is on the list; members come through pointers and bit fields."""
    before = processes(run)
    found = ask(
        live,
        walk="list",
        at="init_task.tasks",
        type="struct task_struct",
        of="struct task_struct",
        by="tasks",
        most=4096,
        each={
            "pid": {"path": "pid"},
            "name": {"path": "comm", "as": "text", "bytes": 16},
            "uid": {"path": "real_cred.uid.val"},
            "kept": {"path": "no_cgroup_migration"},
        },
    )["elements"]
    tasks = {each["pid"]: each for each in found}
    assert before & processes(run) <= tasks.keys()
    assert (tasks[2]["name"], tasks[1]["uid"]) == ("kthreadd", 0)
    # kthreadd may not be moved between cgroups: a bit field that is set, and one that is not.
    assert (tasks[2]["kept"], tasks[1]["kept"]) == (1, 0)


def test_a_hash_table_of_hlists_users(live: LiveGuest) -> None:
    found = ask(
        live,
        walk="hlist",
        at="uidhash_table",
        type="struct hlist_head [128]",
        of="struct user_struct",
        by="uidhash_node",
        most=256,
        each={"uid": {"path": "uid.val"}, "itself": {"path": ".", "as": "place"}},
    )["elements"]
    users = {each["uid"]: each["itself"]["symbol"] for each in found}
    assert users[0] == "root_user+0x0"


def test_an_array_of_structures_limits(live: LiveGuest, run: Run) -> None:
    found = ask(
        live,
        walk="array",
        at="init_task.signal.rlim",
        type="struct task_struct",
        of="struct rlimit",
        most=16,
        each={"soft": {"path": "rlim_cur"}},
    )["elements"]
    assert [each["index"] for each in found] == list(range(16))
    assert found[3]["soft"] == 1024 * int(run("ulimit -s"))  # RLIMIT_STACK


def test_a_member_of_an_unnamed_union_links_of_the_root(live: LiveGuest, run: Run) -> None:
    """`i_nlink` shares its place with `__i_nlink` (include/linux/fs.h), at the end of four pointers."""
    path = "init_task.fs.root.dentry.d_inode.i_nlink"
    assert ask(live, path=path, type="struct task_struct") == {"value": int(run("stat -c %h /"))}


def test_bytes_and_text_at_a_symbol_banner(live: LiveGuest, run: Run) -> None:
    version = run("cat /proc/version").strip()
    assert ask(live, path="linux_banner", **{"as": "bytes", "bytes": 14}) == {
        "value": b"Linux version ".hex()
    }
    assert ask(live, path="linux_banner", **{"as": "text", "bytes": 512})["value"].strip() == version


def test_whose_an_address_is_kernel_modules_nobody(live: LiveGuest) -> None:
    entry = ask(live, path="sys_call_table[60]", type="sys_call_ptr_t [64]", **{"as": "place"})["value"]
    assert (entry["kind"], entry["owner"], entry["symbol"]) == ("text", "", "__x64_sys_exit+0x0")
    load_modules(live.lab)
    try:
        found = ask(
            live,
            walk="list",
            at="modules",
            type="struct list_head",
            of="struct module",
            by="list",
            most=256,
            each={
                "name": {"path": "name", "as": "text", "bytes": 56},
                "exit": {"path": "exit", "as": "place"},
                "itself": {"path": ".", "as": "place"},
                "members": {"path": "name", "as": "address"},
            },
        )["elements"]
    finally:
        unload_modules(live.lab)
    (dummy,) = (each for each in found if each["name"] == "dummy")
    assert (dummy["exit"]["kind"], dummy["exit"]["owner"]) == ("module text", "dummy")
    assert (dummy["itself"]["kind"], dummy["itself"]["owner"]) == ("module data", "dummy")
    heap = ask(live, path="init_task.signal.rlim", type="struct task_struct", **{"as": "place"})["value"]
    assert (heap["kind"], heap["symbol"].startswith("init_signals+")) == ("data", True)
    page = ask(live, path="init_task.tasks.next", type="struct task_struct", **{"as": "place"})["value"]
    assert page["kind"] == "none"


def test_what_a_kernel_does_not_have_makes_a_rule_not_applicable_and_says_so(live: LiveGuest) -> None:
    source = RULE.replace("PATH", "init_task.never_was")
    with Engine(make_bundle("test", 1, {"asks_too_much": source})) as engine:
        (result,) = engine.judge(facts_of(live, engine.bundle.scripts))
    assert result.outcome is Outcome.NOT_APPLICABLE
    assert result.reason == "struct task_struct has no member never_was in this kernel"


RULE = '''"""Asks for a member."""
load("affiant", "ok")
NAME = "asks_too_much"
VERSION = 1
SENTENCE = "There is such a member."
SEVERITY = "low"
TECHNIQUE = ""
MODE = "audit"
FACTS = []
QUERIES = {"member": {"path": "PATH", "type": "struct task_struct"}}
def check(facts):
    return [ok("member %s" % facts["member"]["value"])]
'''


def test_rules_with_queries_hold_under_load(live: LiveGuest, run: Run) -> None:
    """Processes and modules come and go; no look of a monitor is wrong, few are blind or look twice."""
    library = packaged_library()
    asking = {script.name: script.source for script in library.scripts if script.queries}
    bad: list[AssertionResult] = []
    blind: list[AssertionResult] = []
    suspected: list[str] = []
    with Engine(make_bundle("test", 1, asking)) as engine, watch_over(live, engine) as watch:
        assert {result.outcome for result in watch.look().results} == {Outcome.HOLDS}
        run("load all 2")
        try:
            for _ in range(LOOKS_UNDER_LOAD):
                look = watch.look()
                assert len(look.results) == len(asking)
                bad += [result for result in look.results if result.outcome not in _HEALTHY]
                blind += [result for result in look.results if result.outcome is Outcome.INCONCLUSIVE]
                suspected += look.suspected
        finally:
            run("load stop", timeout=300)
    assert not bad, bad
    assert len(blind) <= LOOKS_UNDER_LOAD * len(asking) // 50, blind
    # For each of them the guest was stopped: one look in thousands on an idle host.
    assert len(suspected) <= LOOKS_UNDER_LOAD // 10, suspected
