"""Facts: what was looked at in a live kernel, as values that assertions judge.

    registry            every fact by name, what it means and what reads it; `collect`
    values              the smaller facts, and what all of them are
    as_json             how facts are told: JSON, with lists within bounds
    kernel_code         `kernel_text`, `kernel_rodata`
    protection          `page_rights`, `cpu_state`, `module_code`
    executable_pages    the fact of its name, as are `bpf_programs`, `trace_callbacks`, `system_registers`

A fact says what was seen and how much was looked at; it never judges. The looking itself is done elsewhere
in kernel/: here it becomes values and JSON, and its fields are documented.
"""
