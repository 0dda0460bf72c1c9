"""What is supported, by running it: each kernel is booted, looked at, and told as it was seen.

    python -m lab.support_matrix [--only TEXT] [--json] [--check] [PAGE]

boots a real guest with today's package of each kernel and writes the tables of docs/support-matrix.md between
their marks. What stands outside of the marks is written by hand. What could not be looked at is told beside
what could, and a kernel that does not boot has a column that says so.
"""
