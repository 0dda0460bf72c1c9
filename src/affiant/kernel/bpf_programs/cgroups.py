"""Programs of control groups: what the kernel runs for each, inherited ones included.

kernel/bpf/cgroup.c. Each `struct cgroup` of the second version's tree has an array of programs in effect for
each way to attach. All groups of the tree are visited. One that was removed may stay in the tree for hours;
its arrays were freed, and are left out.
"""

from __future__ import annotations

from typing import Final

from affiant.kernel.bpf_programs.program_lists import program_array
from affiant.kernel.bpf_programs.survey import Survey
from affiant.kernel.walks.lists import list_entries
from affiant.model.errors import MalformedError

__all__ = ["survey_cgroups"]

_CGROUP: Final = "struct cgroup"
_STATE: Final = "struct cgroup_subsys_state"
_MOST: Final = 1 << 16
_DEEPEST: Final = 64
_LONGEST_PATH: Final = 256


def survey_cgroups(survey: Survey) -> None:
    """Note each program in effect for a control group."""
    program = survey.program
    root = program.find("cgrp_dfl_root")
    if root is None or not program.has(_CGROUP, "bpf.effective"):
        return
    effective = program.member(_CGROUP, "bpf.effective")
    names = program.enumerators("enum cgroup_bpf_attach_type")
    state, sibling = program.offset(_CGROUP, "self"), program.offset(_STATE, "sibling")
    children, online = program.offset(_STATE, "children"), program.constant("CSS_ONLINE")
    pending = [root + program.offset("struct cgroup_root", "cgrp")]
    known: dict[int, tuple[int, ...]] = {}
    while pending:
        group = pending.pop()
        survey.looked += 1
        if survey.looked + len(pending) > _MOST:
            raise MalformedError(f"there are more than {_MOST} control groups")
        alive = survey.integer(_STATE, group + state, "flags") & online
        size = effective.size if alive else 0
        arrays = memoryview(survey.memory.read(group + effective.offset, size)).cast("Q")
        where = ""
        for number, array in enumerate(arrays):
            if array not in known:
                known[array] = tuple(program_array(survey, array))
            if known[array]:
                where = where or _path(survey, group)
                kind = names.get(number, str(number)).removeprefix("CGROUP_").lower()
            for held in known[array]:
                survey.note(f"cgroup {kind}", where, held)
        head = group + state + children
        for entry in list_entries(survey.memory, head, offset=sibling, maximum=_MOST):
            survey.memory.budget.step()
            pending.append(entry - state)


def _path(survey: Survey, group: int) -> str:
    """Return the path of a control group below the root of the tree, its end if it is deep or long."""
    program = survey.program
    # Renamed when it came under RCU: Linux 6.15, commit 741c10b096bc.
    parent = "parent" if program.has("struct kernfs_node", "parent") else "__parent"
    node = survey.integer(_CGROUP, group, "kn")
    names: list[str] = []
    length = 0
    while node and len(names) < _DEEPEST and length < _LONGEST_PATH:
        name = survey.text(survey.integer("struct kernfs_node", node, "name"))
        names.append(name)
        length += len(name) + 1
        node = survey.integer("struct kernfs_node", node, parent)
    return "/".join(reversed(names))[-_LONGEST_PATH:] or "/"
