"""What makes a processor run kernel code, and under which protection: against the values of its build.

    look                                    what QEMU lists of each vCPU, and the tables that it leads to
    control, interrupts, segments           one topic of that look each
    saved_look                              what only QEMU's saved state tells of each vCPU
    system_calls, per_cpu_base, memory_types
                                            one topic of that look each
    starting                                processors that are being started: not compared yet
    deviation                               what is not as it must be

Registers come from QEMU and cannot be forged by the guest. The tables that they lead to (IDT, GDT, TSS)
are read from memory and compared with what the reference says they must hold: not "inside the
kernel", but this very handler for this vector. What the guest's own data must tell (which CPU has
which per-CPU area, which features it found) is named where it is used; it can only hide what no
other processor and no earlier look has shown.
"""
