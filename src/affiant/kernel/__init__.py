"""A guest's kernel, read-only: what runs in a virtual machine, seen from outside.

    machine/           guest RAM, page tables, vCPU registers
    reference/         what the kernel must look like, built offline from its package
    objects/           where the kernel runs; its symbols, types and objects, by drgn
    walks/             lists, trees and other structures of the kernel, read within bounds
    comparison/        live code and data against the reference, byte for byte
    transient/         what passes by itself in a healthy kernel, and how long that is believed
    site_content/      what may stand where the kernel patches itself
    running_kernel     a kernel that was found: what those below may ask of it
    kernel_image/      system call tables, pointers set while booting, the vDSO
    page_tables/       what the page tables allow, and who owns executable pages
    processes/         tasks and process ids
    cpu_state/         registers that a kernel of this build must have, and the tables that they lead to
    modules/           loaded modules, in several views, and their code against their files
    tracing/           tracepoints and perf events: who is called
    page_content/      what may stand in executable pages that are no image's and no module's
    bpf_programs/      BPF programs, and everything that leads to them
    guest              one guest ready to be looked at
    facts/             what was seen, as values that assertions judge
    queries/           what rules ask of kernel objects beyond that
    commands           `affiant reference`

Each knows those above it alone (`make check` holds it).

Promised: nothing is ever written to the guest. Symbols, types and text come from the reference image,
never from guest memory. Every walk has a bound; a guest can make a look fail (`MemoryFault`,
`MalformedError`, `UnavailableError`), never hang or crash it.

Not promised: what a CPU still holds in TLBs and caches; anything that was there only between two looks;
code in SMM or firmware; that the host and QEMU tell the truth about RAM and registers.

    memory = GuestMemory.open(path, memory_bytes=size)
    guest = Guest.open(memory, ReferenceImage.load(reference), [parse_registers(text) for text in listings])
    facts = collect(guest, ["kernel_text", "modules"])      # later: guest = guest.refresh(cpus)
"""
