"""The kernel as a program: its symbols and types, and objects in its memory, by drgn.

    slide          where the kernel runs, anchored on vCPU state and confirmed against text
    program        symbols, types and objects of the kernel that was found there
    btf_types      the reference's BTF made into drgn types
    weak_method    callbacks for drgn that keep nothing alive

Symbols and types come from the reference image, and never from guest memory.
"""
