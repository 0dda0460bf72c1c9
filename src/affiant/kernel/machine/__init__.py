"""The machine that the kernel runs on, as QEMU lets it be seen: RAM, page tables and vCPU registers.

    memory, page_set              the file that backs the guest's RAM, and sets of its pages
    kept_ranges                   what parts of it held once
    ram_layout                    where RAM lies among physical addresses
    paging                        an address space: its page tables, read the way the CPU reads them
    table_walk, leaves            all of its tables at once, and the pages that they map
    page_table_entry              the bits of an entry
    cpu                           registers of a vCPU, from QEMU's listing
    saved_cpu, device_stream      system registers that only QEMU's saved state tells
    event_log                     the TCG event log that firmware left in memory

Nothing here knows what kernel runs, nor asks.
"""
