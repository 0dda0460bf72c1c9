"""Parts of the kernel image that are not compared byte for byte where they lie, but by what they mean.

syscalls              system call tables, entry by entry
init_pointers         pointers to functions in data that the kernel fills while it boots
vdso                  code that the kernel lends to every process
overlaid_reference    parts that bring patch tables of their own, with the kernel's reference behind
"""
