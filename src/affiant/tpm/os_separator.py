"""systemd's separators: the end of what firmware and boot loader measured, said by the operating system.

Since version 261 systemd, in an initial RAM disk of a measured boot, extends PCR 0 to 7, 9 and 12 to 14
with the string `os-separator`, so that nothing sealed to what they held can be had later
(systemd-pcrosseparator.service(8)), and then PCR 9 with `nvpcr-separator`, when it has made NV indexes that
act as PCRs (systemd-pcrnvdone.service(8)). The firmware's log does not hold them: it has ended by then.

The strings say nothing of what booted, so it is safe to take them as measured where a register shows them:
whoever measures them himself changes no fact, he only closes his own boot.
"""

from __future__ import annotations

from typing import Final

from affiant.tpm.algorithms import HashAlgorithm

__all__ = ["OS_SEPARATED_PCRS", "is_os_separator", "os_separated"]

OS_SEPARATED_PCRS: Final = frozenset({*range(8), 9, 12, 13, 14})
"""The PCRs that systemd extends with a separator."""

_SEPARATOR: Final = b"os-separator"
_NV_SEPARATOR: Final = b"nvpcr-separator"
_NV_PCR: Final = 9
_MEASURED: Final = {
    pcr: (_SEPARATOR, _NV_SEPARATOR) if pcr == _NV_PCR else (_SEPARATOR,) for pcr in OS_SEPARATED_PCRS
}
# Of the string without a final zero, as systemd measures all its words.
_DIGESTS: Final = {
    bank: {pcr: tuple(map(bank.digest, words)) for pcr, words in _MEASURED.items()} for bank in HashAlgorithm
}


def is_os_separator(pcr: int, digest: bytes, *, bank: HashAlgorithm) -> bool:
    """Tell whether a digest extended into `pcr` is a separator of systemd's; decided by the digest alone."""
    return digest in _DIGESTS[bank].get(pcr, ())


def os_separated(pcr: int, value: bytes, *, bank: HashAlgorithm) -> tuple[bytes, ...]:
    """Return what `value` of `pcr` becomes by systemd's first separator, and by each further one.

    Nothing for a PCR into which systemd measures none.
    """
    values = []
    for digest in _DIGESTS[bank].get(pcr, ()):
        value = bank.digest(value + digest)
        values.append(value)
    return tuple(values)
