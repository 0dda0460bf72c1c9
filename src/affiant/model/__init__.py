"""The values that everyone in Affiant speaks: frozen, standard library only, no behaviour.

A value here carries no trust of its own: each docstring says whether it is *unverified* (decoded,
nothing checked) or *verified* (made only by a function that lists what then holds). Bytes that go
over a wire are made and read in `affiant.wire`, and nowhere else.

Conventions: digests are SHA-256 (32 bytes); P-256 public keys are uncompressed SEC 1 points (65
bytes); X25519 keys are 32 bytes; times are integers, in seconds since the epoch unless the name
says otherwise; `*_ms` is milliseconds.
"""
