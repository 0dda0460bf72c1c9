"""What the page tables of a running kernel allow, and to whom the pages belong.

    address_roots       which page tables processors and processes use, and how their kernel halves differ
    page_rights         pages both writable and executable, and other rights that no page should have
    executable_pages    who owns each executable page above the kernel image
    firmware_map        boot services' memory that the kernel goes on mapping for the firmware

How one table is read is in `affiant.kernel.machine.paging`.
"""
