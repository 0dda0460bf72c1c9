"""Appraisal: evidence, what the service knows, and a policy become a security level with reasons.

Pure: bytes, expectations, times and lists of known things come in as arguments; a frozen result
goes out. Three kinds of bad news are kept apart:

* forged or malformed evidence raises an `affiant.model.errors.EvidenceError`: no session at all;
* missing or unwelcome evidence costs levels, and each requirement that is not met is explained;
* a claim about which nothing was seen is `None`, and counts as not met.

`levels` holds the published table of requirements; one module for each level says how its claims
are established; `appraise` is the flow. What is promised: a level is computed from claims that
were verified here, never from something that the attester said of itself. What is not: the host
(its kernel, QEMU, swtpm, launcher) is trusted until level 5 can be reached.
"""
