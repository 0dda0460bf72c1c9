"""Rules from elsewhere: bundles of assertions as TUF targets, verified before they judge.

Whoever may write rules signs them with keys that are kept offline; everything between the repository
and the monitor may be hostile. This package is the client's side of The Update Framework (TUF), kept in
memory: it starts from the root metadata whose digest the launch record holds, follows the root's
rotations, and accepts a bundle only along the whole chain of root, timestamp, snapshot and targets.

Promised: what is refused leaves everything as it was; versions never go back; an expired repository
offers nothing. Not promised: that a bundle is the newest there is. Whoever holds back a newer one is
noticed when the timestamp expires, and a monitor that begins anew knows no older version: so the
service's signed challenge names a minimum.

The way in: `trusted.TrustedRules`. No clock, socket or file: bytes come through `fetch`, the time as
`now`. The repository's side, with keys and files, is `affiant.publishing`.
"""
