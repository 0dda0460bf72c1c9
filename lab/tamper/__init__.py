"""Ways to tamper with a running guest's kernel, as a rootkit would, and what must be said of each.

One table (`lab.tamper.table`), one file per family. A technique is a row: its name, the rule that must
tell it, what it does, and a context manager that does it and undoes it at its end. To add one, write
the context manager (unless one with other arguments does) and a row in the family's file.
`lab.tamper.trial` tries it: told by its rule, undone, the guest alive, and everything holds again.

Only ever against guests of our own: most write to the guest's memory from the host, where no attacker
is; the rest are small modules that the guest loads willingly.
"""
