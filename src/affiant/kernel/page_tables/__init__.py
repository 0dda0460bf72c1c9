"""What the page tables of a running kernel allow, and to whom the pages belong.

    address_roots       which page tables processors and processes use, and how their kernel halves differ
    table_owners        whose page tables are whose
    tables_in_order     which were in order just as registers were read
    page_rights         rights that no page should have, whoever maps it: all tables at one moment
    rights_findings     what is wrong in one of them
    fixed_code          code that has its place outside of the kernel's text
    executable_pages    who owns each executable page above the kernel image
    firmware_map        boot services' memory that the kernel goes on mapping for the firmware

How one table is read is in `affiant.kernel.machine.paging`.
"""
