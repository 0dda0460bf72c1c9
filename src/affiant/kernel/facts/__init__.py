"""Facts: what was looked at in a live kernel, as values that assertions judge.

    registry       every fact by name, what it means and what reads it; `collect`
    fact           what a fact is, and `Unavailable`
    as_json        how facts are told: JSON, with lists within bounds
    kernel_code    `kernel_text` and `kernel_rodata`

Each other file is the fact of its name: the documentation of its fields, its value, and what reads it. A
fact says what was seen and how much was looked at; it never judges. The looking is done elsewhere in
kernel/.
"""
