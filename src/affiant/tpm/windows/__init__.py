"""What a Windows machine measured when it booted, and what its secure kernel signs while it runs.

Windows continues the firmware's log: its boot manager, loader and hypervisor loader measure tagged
events (SIPA events, named after the "System Integrity Platform Attestation" log that the SDK's
`wbcl.h` describes) into PCR 11 to 14, and after a dynamic launch into PCR 17 to 22.

- reading: `sipa` (nested events), `configuration_log` (which of them a quote proves)
- facts: `boot` (`read_windows_boot`), with `facts`, `modules`, `elam`, `policies`, `identity_key`,
  `bitlocker`, `dynamic_launch`, `boot_manager`
- around the log: `trust_point` (quotes that Windows keeps in the log), `bank_capping`
- while it runs: `runtime_package` with `runtime_reports`; `vbs_enclave` for an enclave beside the kernel

What it promises: a fact is `VERIFIED` only when it comes from data that a digest covers, whose PCR
replays onto a quote, measured before Windows closed that PCR, with nothing unexplained before it.
Unknown events are skipped, since the digest of what holds them covers them too; a fact that needs an
event which is not there is None. Sizes, counts and depths are bounded.

What it does not: prove that it was Windows that measured. Any other system that the firmware starts
can extend the same PCRs with the same octets; the claim `boot_manager_by_microsoft` (PCR 7), or a
policy on the images in PCR 4, tells. All integers in these structures are little-endian.
"""
