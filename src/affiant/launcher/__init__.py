"""The launcher: root of one guest's attester. A door: one process for each virtual machine.

It stands where the CPU and the secure kernel stand on a real machine: it owns the guest's TPM below
the guest, measures the monitor into PCR 17 (D-RTM), starts it in a sandbox, and answers for it with
an identity key that exists in its memory only.

- `process`: starting and ending processes of this host;
- `images`: what the monitor is made of, and its sandbox;
- `vtpm`: the guest's TPM, who may do what with it, and the launcher's own use of it (AK, quote, activation);
- `qemu`: vCPU registers, device state, copies of pages, pause and resume;
- `record`, `identity`: what PCR 17 holds, and the key that it names;
- `channel`: what the monitor may ask; `fact_ring`: facts that it wants kept;
- `monitor_pair`: monitor and relay while they run;
- `settings`, `status`, `log_bounds`, `launch`: the life of the whole.

It promises: the guest acts at locality 0 only; PCR 17 is launched anew after each TPM start; the
identity key and the AK's authorization are never written anywhere; nothing it started outlives it.
It does not promise anything about the host below it: whoever is root there can do all of this too.
"""
