"""Values to bytes and back: everything that Affiant's parts say to one another.

One file is one idea or one message. Underneath lies deterministic CBOR (`cbor`, `fields`), signed
with COSE_Sign1 (`cose`, `keys`, `certificates`) and sealed with HPKE (`seal`). Each message file
has a writer, which takes values of `affiant.model`, and a reader: `decode_*` and `read_*` check the
form only, `verify_*` checks the proofs as well, and its docstring lists what holds then.

Promised: for each message there is one valid encoding; sizes, depths and counts are bounded before
anything is built; `MalformedError` tells that bytes break their format, `ForgedError` that a proof
fails. Not promised: that what a verified message says is welcome. That is for `affiant.appraisal`
and `affiant.relying_party`.

Nothing here reads a clock, a file or a socket: times, nonces and anchors are arguments.
"""
