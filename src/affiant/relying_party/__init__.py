"""The relying party: verify a passport offline, then decide whether it is good enough.

`affiant.relying_party.verify` finds what a passport proves, given the service's root certificate and
the nonce that was asked with; `affiant.relying_party.decide` compares that with a policy and tells
everything that falls short. Both are pure and import nothing beyond `cryptography`.

Promised: a passport that is damaged, forged, old, or somebody else's never becomes a
`VerifiedPassport`; nothing looked at never becomes an acceptance. Not promised: that the machine is
healthy a moment after its report was made. Ask again, with a new nonce.
"""
