"""Executable pages, and whether they hold what their owners are entitled to.

Lists of owners are guest memory, so that a name on a list proves nothing: whoever can write there owns what
he likes. Each kind of owner therefore has one file that says what its pages may hold, and compares:

    bpf_pages       packs, trampolines, dispatchers, allocation by allocation; with bpf_images (one piece of
                    code: what it is, and whether it may lead where it does), bpf_lists (what the kernel says
                    is there), bpf_code (instructions), stack_frame (code that may write nothing else),
                    bpf_calls (where code may lead), bpf_generated (trampolines, dispatchers)
    ftrace_pages    trampolines of function tracing
    kprobe_pages    copies of probed instructions
    thunk_pages     indirect branches made at run time
    image_pages     fixed code outside of the module area

`look` has the table of owners and puts all of it together: a row there adds one. Text of modules is compared
with its files in `modules`; firmware that runs at run time has no reference and is only counted
(`page_rights`).

Code of nobody may be at another place in each look. `look` therefore also counts looks with any of it, that
aside which is a packaged module's text on its way in or out.

Promised: what is found in order has, byte for byte or instruction by instruction, a form that the kernel
itself makes for that owner. Not promised: that a BPF program does what its owner wants.
"""
