"""Inspect: what the monitor would see of a guest, for people.

It shows facts and judges nothing; what it prints proves nothing to anyone else. It reads the guest's RAM
file and QEMU's register listing directly, with the rights of the person who runs it.
"""
