"""Boot evidence for people: explain a machine's event log, an enclave's report, and judge by a policy.

Three commands on files, for Linux and Windows machines, without a service or a TPM:

- `affiant boot explain`: what a log tells, how much of it is proven, and the level it deserves
- `affiant enclave explain`: who signed an enclave's report or a kernel's runtime reports, and what they say
- `affiant policy init`, `diff`, `check`: a policy from a log, two policies compared, a policy tried

What it promises: whatever is shown carries its trust. Without a quote by a key that the caller names,
everything is untrusted, and shown all the same. What it does not: know whether that key lives in a TPM;
that takes enrolment, which is the service's. Nothing is decided here: reading is `affiant.tpm`, judging
is `affiant.appraisal`, and this package reads files and prints.
"""
