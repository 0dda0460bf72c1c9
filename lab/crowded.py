"""A guest as crowded as a small server: tasks that sleep, and modules that servers load.

Made for measurements. The kernel and its modules are Debian's; user space is busybox.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from lab.guests import GuestPlan, LabGuest, start_guest

__all__ = ["crowded_guest"]

# What containers, packet filters, disks and file systems of a server bring; none needs a device.
_MODULES: Final = (
    *("nf_tables", "nft_ct", "nft_compat", "nft_chain_nat", "nft_masq", "nft_reject_inet", "iptable_nat"),
    *("ip6table_filter", "xt_conntrack", "xt_MASQUERADE", "xt_addrtype", "overlay", "br_netfilter", "veth"),
    *("xfs", "dm_crypt", "dm_snapshot", "loop", "fuse", "vfat", "vxlan", "tun", "8021q", "bonding", "dummy"),
    *("wireguard", "nls_ascii", "squashfs", "autofs4", "binfmt_misc", "sch_htb", "tcp_bbr", "inet_diag"),
    *("nft_limit", "nft_log", "nft_fib_inet", "xt_LOG", "xt_set", "ip_set_hash_ip", "isofs", "cls_u32"),
    *("tcp_diag", "udp_diag", "xt_owner", "xt_limit", "ifb", "nls_utf8", "xt_mark", "xt_multiport"),
)


@contextmanager
def crowded_guest(plan: GuestPlan, *, modules: int = 60, tasks: int = 150) -> Iterator[LabGuest]:
    """Boot a guest and have it load `modules` modules and hold at least `tasks` tasks.

    Raises RuntimeError where the kernel does not have so many modules.
    """
    with start_guest(replace(plan, modules=_MODULES)) as guest:
        run = guest.console.run
        full = f"[ $(wc -l < /proc/modules) -ge {modules} ] && break"
        run(f"for file in /lib/more-modules/*.ko; do insmod $file; {full}; done 2>/dev/null")
        loaded = int(run("wc -l < /proc/modules"))
        if loaded != modules:
            raise RuntimeError(f"the guest loaded {loaded} modules, not {modules}")
        run(f"n=$(ls -d /proc/[0-9]* | wc -l); while [ $n -lt {tasks} ]; do sleep 99999 & n=$((n+1)); done")
        yield guest
