"""Virtual machines on this host, started under the launcher: a door.

What is here prepares a guest (packages, firmware, disk, initial file system), describes its QEMU
command line, starts it under `affiant.launcher`, and keeps one folder of state for each.

- `packages`, `apt`, `kernels`: Debian's signed kernel, shim and GRUB, fetched once into a cache;
- `firmware`, `disk`, `initramfs`, `cpio`: what the guest boots from, made without privileges;
- `acceleration`, `machine`: the QEMU command line;
- `state`, `start`, `stop`: the life of one guest on this host, and what is left when it ends;
- `console`, `report`: talking to it.

Nothing here is trusted by the chain of attestation: the launcher measures what matters, and the
quote tells what was booted. Two folders matter: $AFFIANT_CACHE (what can be fetched or made again)
and $AFFIANT_HOME (what cannot), see `affiant.folders`.
"""
