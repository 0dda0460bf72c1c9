"""PCR values as tools write them: JSON by bank, YAML of tpm2-tools, or lines of `index: value`.

None of these is signed. Beside a quote they are what its digest is over; alone they prove nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from affiant.model.errors import MalformedError
from affiant.tpm.algorithms import HashAlgorithm

__all__ = ["PcrValues", "parse_pcr_values", "pcr_values_of"]

PcrValues = dict[HashAlgorithm, dict[int, bytes]]

_BANKS: Final = {bank.title: bank for bank in HashAlgorithm}
_BY_SIZE: Final = {bank.digest_size: bank for bank in HashAlgorithm}
_PCRS: Final = 24
# `0: 3d45..`, `  0 : 0x3D45..`, `PCR-00: 3D 45 ..` (sysfs), `sha256:0=3d45..`
_LINE: Final = re.compile(
    r"^\s*(?:(?P<bank>sha\d+):)?(?:PCR-?)?(?P<pcr>\d{1,2})\s*[:=]\s*(?:0x)?(?P<value>[0-9A-Fa-f ]+)\s*$", re.I
)
_HEAD: Final = re.compile(r"^\s*(?P<bank>sha\d+)\s*:\s*$", re.I)


def parse_pcr_values(content: bytes) -> PcrValues:
    """Read PCR values in any of the known forms; nothing about them is verified.

    JSON is an object of banks (`{"sha256": {"0": "3d45.."}}`), at top level or under `pcrs`. In lines a bank
    is named by a head (`sha256:`), or told by the values' length. In a whole YAML file, such as
    tpm2_eventlog writes, what follows `pcrs:` counts.

    Raises MalformedError: neither form, an index above 23, a value of wrong length, a PCR twice.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedError("PCR values: not text") from None
    if text.lstrip().startswith("{"):
        return _from_json(text)
    _, head, tail = text.rpartition("\npcrs:")
    return _from_lines(tail if head else text)


def pcr_values_of(banks: Mapping[str, Any]) -> PcrValues:
    """Return the values in a decoded JSON object of banks; raises MalformedError."""
    values: PcrValues = {}
    for name, pcrs in banks.items():
        bank = _BANKS.get(name.lower())
        if bank is None:
            continue  # a bank that nothing here can use
        if not isinstance(pcrs, dict):
            raise MalformedError(f"PCR values: bank {name} is no object")
        for index, value in pcrs.items():
            if not (isinstance(value, str) and index.isdecimal()):
                raise MalformedError(f"PCR values: bank {name} has what is no index with a value")
            _add(values, bank, index, value)
    return _some(values)


def _from_json(text: str) -> PcrValues:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"PCR values: not JSON ({error})") from None
    if not isinstance(document, dict):
        raise MalformedError("PCR values: no JSON object")
    banks = document.get("pcrs", document)
    if not isinstance(banks, dict):
        raise MalformedError("PCR values: `pcrs` is no object")
    return pcr_values_of(banks)


def _from_lines(text: str) -> PcrValues:
    values: PcrValues = {}
    current: HashAlgorithm | None = None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = _BANKS.get(head["bank"].lower())
        elif found := _LINE.match(line):
            digits = found["value"].replace(" ", "")
            named = found["bank"]
            bank = _BANKS.get(named.lower()) if named else current or _BY_SIZE.get(len(digits) // 2)
            if bank is None:
                raise MalformedError(f"PCR values: no bank has values of {len(digits) // 2} octets")
            _add(values, bank, found["pcr"], digits)
    return _some(values)


def _add(values: PcrValues, bank: HashAlgorithm, index: str, value: str) -> None:
    try:
        octets = bytes.fromhex(value.removeprefix("0x"))
    except ValueError:
        raise MalformedError(f"PCR values: PCR {index[:8]} ({bank.title}) is not hexadecimal") from None
    if len(index) > 2 or int(index) >= _PCRS:
        raise MalformedError(f"PCR values: there is no PCR {index[:8]}")
    if len(octets) != bank.digest_size:
        raise MalformedError(f"PCR values: PCR {index} ({bank.title}) has {len(octets)} octets")
    if int(index) in values.setdefault(bank, {}):
        raise MalformedError(f"PCR values: PCR {index} ({bank.title}) comes twice")
    values[bank][int(index)] = octets


def _some(values: PcrValues) -> PcrValues:
    if not any(values.values()):
        raise MalformedError(
            "PCR values: none found", hint='give JSON as {"sha256": {"0": "3d45.."}}, or lines of `0: 3d45..`'
        )
    return values
