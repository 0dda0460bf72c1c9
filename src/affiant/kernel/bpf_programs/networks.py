"""Programs of network devices and namespaces: XDP, traffic control, netfilter, flow dissector, lookups.

net/core/dev.c (`dev_xdp_prog()`), kernel/bpf/tcx.c (Linux 6.6, commit e420bed02507),
kernel/bpf/net_namespace.c, net/netfilter/nf_bpf_link.c (Linux 6.4, commit 84601d6ee68a). Programs of
classifiers in modules (cls_bpf, act_bpf) are not reached: their types are in no image.
"""

from __future__ import annotations

from typing import Final

from affiant.kernel.bpf_programs.program_lists import program_array
from affiant.kernel.bpf_programs.survey import Survey
from affiant.kernel.walks.lists import list_entries
from affiant.model.errors import MalformedError

__all__ = ["survey_networks"]

_NET: Final = "struct net"
_DEVICE: Final = "struct net_device"
_XDP: Final = "struct bpf_xdp_entity"
_ENTRY: Final = "struct bpf_mprog_entry"
_HOOKS: Final = "struct nf_hook_entries"
_HOOK: Final = "struct nf_hook_entry"
_MOST_NAMESPACES: Final = 4096
_MOST_DEVICES: Final = 1 << 16
_MOST_HOOKS: Final = 1024  # MAX_HOOK_COUNT
_FAMILIES: Final = ("ipv4", "ipv6", "arp", "bridge")


def survey_networks(survey: Survey) -> None:
    """Note each program of a network device, of a namespace, and of its netfilter hooks.

    Raises MalformedError unless the namespace that the kernel image holds is on the list, with its loopback
    device: neither ever leaves.
    """
    program = survey.program
    head, first = program.find("net_namespace_list"), program.find("init_net")
    if head is None:
        return
    devices_of: dict[int, int] = {}
    for net in list_entries(
        survey.memory, head, offset=program.offset(_NET, "list"), maximum=_MOST_NAMESPACES
    ):
        survey.memory.budget.step()
        _namespace(survey, net)
        before = survey.looked
        devices = net + program.offset(_NET, "dev_base_head")
        link = program.offset(_DEVICE, "dev_list")
        for device in list_entries(survey.memory, devices, offset=link, maximum=_MOST_DEVICES):
            survey.looked += 1
            survey.memory.budget.step()
            _device(survey, device)
        devices_of[net] = survey.looked - before
    if first is not None and not devices_of.get(first):
        raise MalformedError("the first network namespace is not on its list, or has no device")


def _namespace(survey: Survey, net: int) -> None:
    program = survey.program
    if program.has(_NET, "bpf.run_array"):
        member = program.member(_NET, "bpf.run_array")
        for number, array in enumerate(_words(survey, net + member.offset, member.size)):
            for held in program_array(survey, array):
                survey.note("network namespace", f"namespace at {net:#x}, kind {number}", held)
    entry = program.find("nf_hook_run_bpf")
    for family in _FAMILIES:
        path = f"nf.hooks_{family}"
        if entry is None or not program.has(_NET, path):
            continue
        member = program.member(_NET, path)
        for point, hooks in enumerate(_words(survey, net + member.offset, member.size)):
            _netfilter(survey, hooks, entry, f"{family} hook point {point}")


def _netfilter(survey: Survey, hooks: int, entry: int, where: str) -> None:
    if not hooks:
        return
    program = survey.program
    count = survey.integer(_HOOKS, hooks, "num_hook_entries")
    if count > _MOST_HOOKS:
        raise MalformedError(f"{where} has {count} hooks")
    first, size = hooks + program.offset(_HOOKS, "hooks"), program.size(_HOOK)
    for index in range(count):
        if survey.integer(_HOOK, first + size * index, "hook") == entry:
            survey.note("netfilter", where, survey.integer(_HOOK, first + size * index, "priv"))


def _device(survey: Survey, device: int) -> None:
    program = survey.program
    name = survey.text(device + program.offset(_DEVICE, "name"))
    if program.has(_DEVICE, "xdp_state"):
        member = program.member(_DEVICE, "xdp_state")
        for place in range(0, member.size, program.size(_XDP)):
            entity = device + member.offset + place
            survey.note("XDP", name, survey.integer(_XDP, entity, "prog"))
            survey.note_link("XDP", name, survey.integer(_XDP, entity, "link"))
    if program.has(_DEVICE, "xdp_prog"):
        survey.note("XDP", name, survey.integer(_DEVICE, device, "xdp_prog"))
    for direction in ("ingress", "egress"):
        if program.has(_DEVICE, f"tcx_{direction}"):
            entry = survey.integer(_DEVICE, device, f"tcx_{direction}")
            for held in _in_turn(survey, entry):
                survey.note("traffic control", f"{direction} of {name}", held)


def _in_turn(survey: Survey, entry: int) -> list[int]:
    """Return the programs of a `struct bpf_mprog_entry`, which end with a null pointer or its last place."""
    if not entry:
        return []
    member = survey.program.member(_ENTRY, "fp_items")
    items = _words(survey, entry + member.offset, member.size)
    return items[: items.index(0)] if 0 in items else items


def _words(survey: Survey, address: int, size: int) -> list[int]:
    return memoryview(survey.memory.read(address, size)).cast("Q").tolist()
