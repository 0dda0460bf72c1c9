"""A guest's kernel, read-only: what runs in a virtual machine, seen from outside.

    machine/               guest RAM, page tables, vCPU registers
    reference/             what the kernel must look like, built offline from its package
    objects/               where the kernel runs; its symbols, types and objects, by drgn
    walks/                 lists, trees and other structures of the kernel, read within bounds
    transient/             what passes by itself in a healthy kernel, and how long that is believed
    comparison/            live code and data against the reference, byte for byte
    kernel_image/          system call tables, pointers set while booting, the vDSO
    page_tables/           what the page tables allow, and who owns executable pages
    processes/             tasks and process ids
    tracing/               tracepoints and perf events: who is called
    modules/               loaded modules, in several views, and their code against their files
    guest, facts           one guest ready to be looked at; what was seen, as values

Promised: nothing is ever written to the guest. Symbols, types and text come from the reference image,
never from guest memory. Every walk has a bound; a guest can make a look fail (`MemoryFault`,
`MalformedError`, `UnavailableError`), never hang or crash it.

Not promised: what a CPU still holds in TLBs and caches; anything that was there only between two looks;
code in SMM or firmware; that the host and QEMU tell the truth about RAM and registers.

    memory = GuestMemory.open(path, memory_bytes=size)
    guest = Guest.open(memory, ReferenceImage.load(reference), [parse_registers(text) for text in listings])
    facts = collect(guest, ["kernel_text", "modules"])      # later: guest = guest.refresh(cpus)
"""
