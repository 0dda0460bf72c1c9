"""The launcher: root of one guest's attester. A door: one process for each virtual machine.

It stands where the CPU and the secure kernel stand on a real machine: it owns the guest's TPM below
the guest, measures the monitor into PCR 17 (D-RTM), starts it in a sandbox, and answers for it with
an identity key that exists in its memory only.

- `control_protocol`, `swtpm`, `gateway`, `vtpm_ca`: the guest's TPM and who may do what with it;
- `tpm_commands`, `attestation`: the launcher's own use of that TPM (AK, quote, activation, PCR 17);
- `record`, `identity`: what PCR 17 holds, and the key that it names;
- `image`, `image_files`, `manifest`, `sandbox`: what the monitor is made of, and what it can reach;
- `channel`: what the monitor may ask; `qemu_monitor`: vCPU registers, pause, resume;
- `settings`, `children`, `status`, `launch`: the life of the whole.

It promises: the guest acts at locality 0 only; PCR 17 is launched anew after each TPM start; the
identity key and the AK's authorization are never written anywhere; nothing it started outlives it.
It does not promise anything about the host below it: whoever is root there can do all of this too.
"""
