"""Small kernel modules for guests of the lab, for what cannot be done from outside.

Each does one thing to the guest that loads it, and undoes it when it is unloaded. They do no harm and
have no use outside of a test: nothing is hidden, kept or passed on.
"""
