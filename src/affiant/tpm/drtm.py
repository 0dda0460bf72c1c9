"""The dynamic launch: what PCR 17 holds after the D-RTM hash sequence over a launch record.

TPM 2.0 Library, Part 1, section 34.4 (_TPM_Hash_Start, _Data, _End): PCR 17 is reset to zeros, then
extended with the hash of the data. It holds ones before the first launch; only locality 4 can do this.
"""

from __future__ import annotations

from affiant.tpm.algorithms import HashAlgorithm

__all__ = ["expected_pcr17"]


def expected_pcr17(record: bytes, *, bank: HashAlgorithm = HashAlgorithm.SHA256) -> bytes:
    """The value of PCR 17 after one launch of `record` and nothing else: H(0 || H(record)).

    A guest that could extend PCR 17 would only make the value differ.
    """
    return bank.digest(bytes(bank.digest_size) + bank.digest(record))
