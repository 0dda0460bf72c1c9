"""QEMU as the launcher sees it: one connection, and what is taken of the guest while it stands still.

state_file          where QEMU writes what it saves of its devices
page_copies         pages of the guest, all of one moment, for the monitor
hurry               before others, for as long as a guest stands still
connection          registers, device state, copies, pause and resume
cpus_socket         what QEMU saves of the processors, for the machine's owner
"""
