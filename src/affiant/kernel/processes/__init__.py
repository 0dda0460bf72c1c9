"""Tasks and processes, by every way that the kernel has to them, and their credentials.

tasks          the kernel's list of tasks, and who is not on it
process_ids    the ids that were given out, and the process that each leads to
"""
