"""Structures of the kernel in writable memory that decide what it calls and whom it trusts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from lab.live_guest import LiveGuest
from lab.tamper.technique import Technique

__all__ = ["DATA_TECHNIQUES", "listening"]


@contextmanager
def _redirect_protocol(live: LiveGuest, operation: str = "sendmsg") -> Iterator[str]:
    """Point an operation of TCP to memory that holds no code; yields the subject to be found."""
    program = live.guest.program
    place = program.address("tcp_prot") + program.offset("struct proto", operation)
    with live.changed(place, program.address("init_task").to_bytes(8, "little")):
        yield f"tcp_prot.{operation}"


@contextmanager
def _redirect_format(live: LiveGuest) -> Iterator[str]:
    """Point the first binary format's loader to memory that holds no code; yields the subject to be found.

    Whatever the guest executes meanwhile crashes it.
    """
    program = live.guest.program
    entry = program.word(program.address("formats")) - program.offset("struct linux_binfmt", "lh")
    place = entry + program.offset("struct linux_binfmt", "load_binary")
    with live.changed(place, program.address("init_task").to_bytes(8, "little")):
        yield f"load_binary of the binary format at {entry:#x}"


@contextmanager
def _listen_to_keys(live: LiveGuest) -> Iterator[str]:
    """Put a listener on the keyboard's notifier chain; yields the subject to be found.

    A key pressed meanwhile crashes the guest.
    """
    with listening(live, "keyboard_notifier_list", "struct atomic_notifier_head") as block:
        yield f"keyboard notifier at {block:#x}"


@contextmanager
def listening(live: LiveGuest, chain: str, kind: str) -> Iterator[int]:
    """Put a notifier_block whose function is data on a chain of the kernel; yields its address.

    It lies in the unused end of the kernel's log. The guest crashes when the chain is called meanwhile.
    """
    program = live.guest.program
    block = _unused(live, program.size("struct notifier_block"))
    head = program.address(chain) + program.offset(kind, "head")
    listener = bytearray(program.size("struct notifier_block"))
    listener[:8] = program.address("init_task").to_bytes(8, "little")
    place = program.offset("struct notifier_block", "next")
    listener[place : place + 8] = program.word(head).to_bytes(8, "little")
    with live.changed(block, bytes(listener)), live.changed(head, block.to_bytes(8, "little")):
        yield block


@contextmanager
def _replace_modprobe(live: LiveGuest) -> Iterator[str]:
    """Let the kernel start another program as root when it wants a module; yields the subject to be found."""
    with live.changed(live.guest.program.address("modprobe_path"), b"/tmp/x\0"):
        yield "modprobe_path"


@contextmanager
def _tap_packets(live: LiveGuest) -> Iterator[str]:
    """Point the function that takes ARP packets to memory that holds no code; yields the subject to be found.

    A packet that arrives meanwhile crashes the guest, which has no network.
    """
    program = live.guest.program
    handler = program.address("arp_packet_type")
    place = handler + program.offset("struct packet_type", "func")
    with live.changed(place, program.address("init_task").to_bytes(8, "little")):
        yield f"packet handler at {handler:#x}"


@contextmanager
def _replace_protocol(live: LiveGuest) -> Iterator[str]:
    """Put a net_protocol of no owner's in the place of IGMP's; yields the subject to be found.

    It lies in the unused end of the kernel's log, and its handler holds no code.
    """
    program = live.guest.program
    block = _unused(live, program.size("struct net_protocol"))
    forged = bytearray(program.size("struct net_protocol"))
    place = program.offset("struct net_protocol", "handler")
    forged[place : place + 8] = program.address("init_task").to_bytes(8, "little")
    igmp = program.address("inet_protos") + 8 * 2  # IPPROTO_IGMP
    with live.changed(block, bytes(forged)), live.changed(igmp, block.to_bytes(8, "little")):
        yield f"IPv4 protocol handler at {block:#x}"


@contextmanager
def _replace_hook(live: LiveGuest) -> Iterator[str]:
    """Point the first IPv4 netfilter hook to memory that holds no code; yields the subject to be found.

    An IPv4 packet that leaves the guest meanwhile crashes it, which has no network.
    """
    program = live.guest.program
    points = (
        program.address("init_net")
        + program.offset("struct net", "nf")
        + program.offset("struct netns_nf", "hooks_ipv4")
    )
    number, entries = next(
        (number, entries) for number in range(5) if (entries := program.word(points + 8 * number))
    )
    place = entries + program.offset("struct nf_hook_entries", "hooks")
    with live.changed(place, program.address("init_task").to_bytes(8, "little")):
        yield f"ipv4 hook point {number}, hook 0"


@contextmanager
def _watch_modules(live: LiveGuest) -> Iterator[str]:
    """Put a notifier that calls into data on the chain for modules; yields the subject to be found."""
    with listening(live, "module_notify_list", "struct blocking_notifier_head") as block:
        yield f"module_notify_list, notifier at {block:#x}"


@contextmanager
def _read_terminals(live: LiveGuest) -> Iterator[str]:
    """Point a function of the null line discipline to memory without code; yields the subject to be found.

    No terminal of the guest uses it; that of the discipline that all use would crash the guest.
    """
    program = live.guest.program
    discipline = program.word(program.address("tty_ldiscs") + 8 * 27)  # N_NULL
    place = discipline + program.offset("struct tty_ldisc_ops", "read")
    with live.changed(place, program.address("init_task").to_bytes(8, "little")):
        yield "read of line discipline n_null"


def _unused(live: LiveGuest, size: int) -> int:
    """Return where the unused end of the kernel's log has room for `size` bytes."""
    program = live.guest.program
    log = program.reference.symbols.unique("__log_buf")
    assert log is not None
    block = program.running(log.address) + log.size - 4096
    assert not any(program.read(block, size)), "the kernel's log reaches its end"
    return block


_data = partial(Technique, "data")

DATA_TECHNIQUES: Final = (
    _data(
        "redirected_protocol",
        "protocol_operations_owned",
        "tcp_prot.sendmsg was pointed to data.",
        _redirect_protocol,
        recorded=True,
    ),
    _data(
        "redirected_format",
        "binary_formats_owned",
        "The first binary format's load_binary was pointed to data.",
        _redirect_format,
        recorded=True,
    ),
    _data(
        "keylogger",
        "keyboard_notifiers_owned",
        "A notifier_block that calls into data was put on keyboard_notifier_list.",
        _listen_to_keys,
        recorded=True,
        attack="T1056.001",
    ),
    _data(
        "other_modprobe",
        "usermode_helpers_known",
        "modprobe_path was overwritten.",
        _replace_modprobe,
        recorded=True,
        attack="T1068",
    ),
    _data(
        "tapped_packets",
        "packet_handlers_owned",
        "The function that takes ARP packets was pointed to data.",
        _tap_packets,
        recorded=True,
        attack="T1205",
    ),
    _data(
        "replaced_protocol",
        "packet_handlers_owned",
        "IGMP was given a handler that is data.",
        _replace_protocol,
        recorded=True,
        attack="T1205",
    ),
    _data(
        "replaced_hook",
        "netfilter_hooks_owned",
        "The first IPv4 netfilter hook was pointed to data.",
        _replace_hook,
        recorded=True,
        attack="T1205",
    ),
    _data(
        "watched_modules",
        "notifiers_owned",
        "A notifier_block that calls into data was put on module_notify_list.",
        _watch_modules,
        recorded=True,
    ),
    _data(
        "read_terminals",
        "input_handlers_owned",
        "A function of a line discipline was pointed to data.",
        _read_terminals,
        recorded=True,
        attack="T1056.001",
    ),
)
