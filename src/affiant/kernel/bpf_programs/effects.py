"""What programs can do beyond watching, by what they call and how they are attached.

Each effect is told as what it is: tools for tracing, networks and security have good reasons for most.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

__all__ = ["EFFECTS", "effects_of"]

EFFECTS: Final = {
    "writes user memory": r"bpf_probe_write_user(_str_dynptr|_dynptr)?|bpf_copy_to_user\w*",
    "overrides returns": r"bpf_override_return",
    "sends signals": r"bpf_send_signal(_thread|_task)?",
    "reads kernel memory": r"bpf_probe_read(_kernel|_compat)?(_str)?(_dynptr)?",
    "reads user memory": r"bpf_probe_read_user(_str)?(_dynptr)?|bpf_copy_from_user\w*",
    "changes packets": r"bpf_(skb_(store_bytes|change_\w+|adjust_\w+|vlan_\w+|set_tunnel_\w+)"
    r"|l[34]_csum_replace|xdp_(adjust_\w+|store_bytes)|clone_redirect|redirect\w*|msg_(push|pop)_data|lwt_push_encap"
    r"|lwt_seg6_(store_bytes|adjust_srh))",
    "changes sockets": r"bpf_(unlocked_)?(sk|sock_addr|sock_ops)_setsockopt|bpf_setsockopt|bpf_sock_destroy",
    "makes system calls": r"bpf_(kern_)?sys_bpf|bpf_sys_close",
}
"""Effect -> the functions that have it, as a pattern of their whole names."""

_BY_ATTACHMENT: Final = {"modify_return": "overrides returns"}
_BY_TYPE: Final = {"ext": "replaces a program's function", "struct_ops": "replaces the kernel's operations"}
_PATTERNS: Final = {effect: re.compile(pattern) for effect, pattern in EFFECTS.items()}


def effects_of(calls: Iterable[str], *, kind: str, attach_type: str) -> tuple[str, ...]:
    """Return the effects of a program that calls these functions, in the order of their names."""
    names = tuple(calls)
    found = {
        effect for effect, pattern in _PATTERNS.items() if any(pattern.fullmatch(name) for name in names)
    }
    found |= {_BY_ATTACHMENT[attach_type]} if attach_type in _BY_ATTACHMENT else set()
    found |= {_BY_TYPE[kind]} if kind in _BY_TYPE else set()
    return tuple(sorted(found))
