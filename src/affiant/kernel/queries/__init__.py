"""Queries: what rules ask of kernel objects that no built-in fact covers.

    owners      whose an address is: the kernel's, a module's, a program's, nobody's
    answers     what each query finds, under a time limit; `affiant.kernel.walks` reads it

Two steps, kept apart. What a query *means* on a kernel is decided by the reference's symbols and types
alone, before any guest memory is read: where the kernel has no such symbol or member, the answer is
`Absent`, and no guest can bring that about. Then memory is read, which may fail in any way; that is
`Unavailable`, and a partial answer never looks like a whole one.
"""
