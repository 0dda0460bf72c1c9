"""Measurements as ratios against a peer or the physical limit in the same run; never a timed test.

`make bench` prints all tables; `python -m benchmarks verification` one of them. Figures of a busy or
virtual machine move: each row is the median of many runs, and what counts is the ratio.
"""
