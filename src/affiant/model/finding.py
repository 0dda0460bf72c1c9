"""A finding: something true but unwelcome, told so that a person can act on it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Finding"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be.

    `subject` names the object in the field's own words (`tcp4_seq_show+0x5`, `PCR 7`,
    `sys_call_table[59]`), `expected` and `found` are short texts (bytes as hex), `owner` says to
    whom the subject belongs (a module, a package, ""), `technique` is a MITRE ATT&CK id or "".
    """

    subject: str
    expected: str
    found: str
    owner: str = ""
    technique: str = ""
