"""TPM bytes in, verified boot state out; pure: no clock, no socket, no file.

What it is for: everything a verifier must know of a TPM 2.0 and its measured boot, and the command
bytes with which a launcher drives one.

- keys: `public_area`, `attestation_key`, `endorsement`, `credential` (is this key in a real TPM?)
- quotes: `attest`, `signature`, `quote` (which PCR values did that key sign, and for whom?)
- logs: `event_log`, `replay`, `binding` (which events led to those values, and which of their
  data do the digests cover?)
- more logs: `final_events` and `cel` (what firmware and user space measured after the log was fetched),
  `ima` (files that a running kernel measured), `ccel` (machines without a TPM)
- facts: `secure_boot`, `shim`, `grub`, `uki`, `mok`, `gpt`, `boot_state` (what booted), `drtm`
  (PCR 17); what firmware and boot loaders do otherwise than specified is data in `quirks`
- Windows machines: `windows` (what Windows measured, and what its secure kernel and VBS enclaves
  report while it runs)
- commands: `command_bytes`, `templates`, `response_code`

What it promises: every function takes bytes and expectations and returns a frozen value; malformed
bytes raise `MalformedError`, bytes whose proof fails raise `ForgedError`, and nothing else. Sizes,
counts and depths are bounded before anything is allocated. Values named `untrusted_*` are covered
by no digest: they are for people to read, never for a rule.

What it does not: decide whether a true state is welcome (that is appraisal), nor know whether the
TPM that signs is a chip, an emulator or a liar (that is what `endorsement` and the level are for).

Integers are big-endian in TPM structures (TPM 2.0 Library, Part 1, section 4) and little-endian in
event logs (TCG PC Client Platform Firmware Profile, section 10).
"""
