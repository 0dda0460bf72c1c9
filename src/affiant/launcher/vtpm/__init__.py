"""The guest's TPM, and who may do what with it.

control_protocol    what is said to swtpm beside TPM commands
swtpm               its process, and the two channels to it
authority           making a TPM, with EK certificates of this host
guest_commands      which commands a guest may give
boot_pcrs           the PCRs that close when the firmware is done
turns               one TPM, the guest and the launcher in turn
gateway             between QEMU and swtpm: locality 0, and PCR 17 launched anew with each start
attestation         the launcher's own use of it: attestation key, quote, activation
"""
