"""The relay: an untrusted courier between one monitor, the attestation service and relying parties.

The monitor has no network. The relay carries its messages to the service over HTTP(S), gets files of
the rules repository for it, from the service or from another web server, and carries relying parties'
questions, which arrive on a Unix socket, to the monitor. It can read nothing that is sealed and forge
nothing that is signed: the worst it can do is delay or drop, and silence is noticed. In return it
trusts nobody either: everything from monitor, servers and clients is bounded in size, number and time.

`python -m affiant.relay --courier-fd N --service URL --socket PATH [--rules URL]` is started by the launcher,
lives as long as the monitor at the other end of the descriptor, and exits when that ends.
"""
