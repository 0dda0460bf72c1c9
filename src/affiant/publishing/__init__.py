"""Publishing: the rules repository's side, with keys, drafts, and files that any web server can give out.

A repository is a folder:

    settings.json       the fleet, and how long each kind of metadata lasts
    public/             what is given out: metadata/ and targets/, static, consistent snapshots
    online/             keys of snapshot and timestamp, for the host that publishes and refreshes
    draft/              root, targets and bundle while signatures are collected

Keys of root and targets are files of their owners, encrypted, and never come into the folder. Each
signer signs a draft by itself; it goes out when there are as many signatures as the root demands, and
only after it was accepted in memory in just the way that a monitor accepts it (`affiant.rules`).

Not promised: secrecy of rules (whoever may fetch reads them), or that an online key cannot be stolen:
a thief who sits on the way, too, can withhold newer rules and newer roots for as long as the root lasts, and
bring in none; the least version that the service demands ends that.
"""
