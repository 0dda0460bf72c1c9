"""Fuzzing: octets that nobody would send, at every reader of octets from outside.

`python -m fuzz` runs every target of `fuzz.targets` in turn, with the corpus in `fuzz/corpus`, until
FUZZ_SECONDS (600) are over; `python -m fuzz NAME` runs one. A target may raise EvidenceError and nothing
else; time and memory of one input are bounded. What is found stays in `fuzz/found`.
"""
