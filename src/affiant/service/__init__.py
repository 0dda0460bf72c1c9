"""The attestation service: verifier of evidence, keeper of devices, issuer of sessions.

`attestation_service` is the service itself: five exchanges over bytes, each in a module of its own
(`challenging`, `enrolling`, `opening`, `heartbeats`), which ask no clock and know no HTTP. `http`
and `server` are its door to the network, `commands` its door to the operator. `ca` keeps the keys,
`tables` and the `*_store` modules the rest, in SQLite or PostgreSQL.

Promised: a challenge is good once for each purpose, across processes and power cuts; an enrolment
is proved within minutes, in one try; a session certificate lives one hour at most; a session that
forks ends; silence shows; what a level needs is decided by `affiant.appraisal` alone. Clients are
bounded in size, time, rate and number, and learn no more than why they were refused.

Not promised: revocation at relying parties that verify offline, beyond the hour that a session lives.
"""
