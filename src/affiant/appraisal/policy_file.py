"""Reading a policy from TOML: the one format for the service, for `affiant boot` and for people.

Everything but `format` may be left out: a list of the service's accepted sets that is left out keeps its
default, any other rule that is left out is not applied. What is there is read strictly: a name that is
unknown (a slip of the pen would otherwise be a rule that nobody applies) or a value of another kind is
refused. `affiant.appraisal.policy_text` writes the same format.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from affiant.appraisal.boot_facts import FACT_NAMES
from affiant.appraisal.boot_rules import DIGEST_SIZES, BootRules
from affiant.appraisal.policy import AcceptedMonitor, AppraisalPolicy
from affiant.model.errors import MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.wire.rules_path import FLEET

__all__ = ["FORMAT", "MAXIMUM_POLICY", "NamedPolicy", "parse_policy"]

FORMAT: Final = 1
"""The format's number; a file of another one is refused."""
MAXIMUM_POLICY: Final = 1 << 20
"""Octets of the longest policy that is read."""

_MAXIMUM_ENTRIES: Final = 16384
_MAXIMUM_TEXT: Final = 4096
_MAXIMUM_NUMBER: Final = (1 << 32) - 1
_SHA256_SIZE: Final = 32
_NAMED_DIGEST: Final = re.compile(r'"([0-9a-fA-F]{40,128})"[ \t]*,?[ \t]*#[ \t]*([^\r\n]{1,200})')
_Section = dict[str, Any]


@dataclass(frozen=True, slots=True)
class NamedPolicy:
    """A policy and the names that its comments give to digests, which are for people only."""

    policy: AppraisalPolicy
    names: Mapping[bytes, str]


def parse_policy(content: bytes) -> NamedPolicy:
    """Read a policy file.

    When it returns, every name in the file is one that is known here, and every value is of the kind
    and within the bounds that its rule has. Raises MalformedError.
    """
    if len(content) > MAXIMUM_POLICY:
        raise MalformedError(f"policy of {len(content)} octets is longer than {MAXIMUM_POLICY}")
    try:
        text = content.decode("utf-8")
        document = tomllib.loads(text)
    except RecursionError:
        raise MalformedError("policy: nested too deeply") from None
    except ValueError as error:
        raise MalformedError(f"policy: not TOML ({error})", hint="this command wants a policy file") from None
    version = document.pop("format", None)
    if version is None:
        raise MalformedError(
            f"policy: it does not begin with format = {FORMAT}",
            hint="affiant policy init --from-log LOG makes one",
        )
    if version != FORMAT or isinstance(version, bool):
        raise MalformedError(f"policy: format = {version!r}, this version reads format = {FORMAT}")
    fields: dict[str, Any] = {}
    rules: dict[str, Any] = {}
    for section_name, section in document.items():
        keys = _KEYS.get(section_name)
        if keys is None or not isinstance(section, dict):
            raise MalformedError(f"policy: there is no section [{section_name}]")
        for key, value in section.items():
            if key not in keys:
                raise MalformedError(
                    f"policy: there is no rule {key!r} in [{section_name}]", hint=f"it has {', '.join(keys)}"
                )
            target, read = keys[key]
            found = read(value, f"{section_name}.{key}")
            if target.startswith("boot."):
                rules[target.removeprefix("boot.")] = found
            else:
                fields[target] = found
    names = {bytes.fromhex(m[1]): m[2].strip() for m in _NAMED_DIGEST.finditer(text) if len(m[1]) % 2 == 0}
    return NamedPolicy(replace(AppraisalPolicy(), **fields, boot=BootRules(**rules)), names)


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > _MAXIMUM_ENTRIES:
        raise MalformedError(f"policy: {where} is no list of at most {_MAXIMUM_ENTRIES}")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value or len(value) > _MAXIMUM_TEXT:
        raise MalformedError(f"policy: {where} has what is no text of 1 to {_MAXIMUM_TEXT} characters")
    return value


def _line(value: object, where: str) -> str:
    return "" if value == "" else _text(value, where)


def _texts(value: object, where: str) -> frozenset[str]:
    return frozenset(_text(one, where) for one in _list(value, where))


def _lines(value: object, where: str) -> frozenset[str]:
    return frozenset(_line(one, where) for one in _list(value, where))


def _patterns(value: object, where: str) -> tuple[str, ...]:
    return tuple(_text(one, where) for one in _list(value, where))


def _digest(value: object, where: str) -> bytes:
    try:
        digest = bytes.fromhex(_text(value, where))
    except ValueError:
        raise MalformedError(f"policy: {where} has {value!r}, which is no hexadecimal digest") from None
    if len(digest) not in DIGEST_SIZES:
        raise MalformedError(f"policy: {where} has a digest of {len(digest)} octets")
    return digest


def _digests(value: object, where: str) -> frozenset[bytes]:
    return frozenset(_digest(one, where) for one in _list(value, where))


def _sha256(value: object, where: str) -> frozenset[bytes]:
    digests = _digests(value, where)
    if any(len(digest) != _SHA256_SIZE for digest in digests):
        raise MalformedError(f"policy: {where} wants SHA-256 digests, of {_SHA256_SIZE} octets")
    return digests


def _number(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAXIMUM_NUMBER:
        raise MalformedError(f"policy: {where} is no number from 0 to {_MAXIMUM_NUMBER}")
    return value


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise MalformedError(f"policy: {where} is neither true nor false")
    return value


def _facts(value: object, where: str) -> frozenset[str]:
    names = _texts(value, where)
    if unknown := sorted(names - FACT_NAMES):
        raise MalformedError(f"policy: {where} names no fact that is known here: {unknown[0]}")
    return names


def _fleets(value: object, where: str) -> frozenset[str]:
    names = _texts(value, where)
    if not names or not all(FLEET.fullmatch(name) for name in names):
        # None at all would be taken for any: whoever wants that leaves the rule out.
        raise MalformedError(f"policy: {where} must name fleets, as rules repositories do")
    return names


def _banks(value: object, where: str) -> frozenset[str]:
    names = _texts(value, where)
    if unknown := sorted(names - {bank.title for bank in HashAlgorithm}):
        raise MalformedError(f"policy: {where} names no bank: {unknown[0]}")
    return names


def _pcrs(value: object, where: str) -> frozenset[int]:
    indices = frozenset(_number(one, where) for one in _list(value, where))
    if any(index > 23 for index in indices):  # a PC Client TPM has 24
        raise MalformedError(f"policy: {where} names a PCR above 23")
    return indices


def _monitors(value: object, where: str) -> frozenset[AcceptedMonitor]:
    found = set()
    for one in _list(value, where):
        if not isinstance(one, dict) or set(one) != {"image", "version", "security_version"}:
            raise MalformedError(f"policy: a monitor in {where} has image, version and security_version")
        (image,) = _sha256([one["image"]], where)
        version = _text(one["version"], where)
        found.add(AcceptedMonitor(image, version, _number(one["security_version"], where)))
    return frozenset(found)


_Reader = Callable[[object, str], object]
# Section, name in it, the field of the policy (`boot.` for its rules) and how to read it.
_KEYS: Final[dict[str, dict[str, tuple[str, _Reader]]]] = {
    "quote": {"banks": ("boot.banks", _banks), "pcrs": ("boot.replayed_pcrs", _pcrs)},
    "facts": {"required": ("boot.required_facts", _facts)},
    "firmware": {"versions": ("boot.firmware_versions", _lines)},
    "secure_boot": {
        "platform_keys": ("boot.platform_keys", _sha256),
        "key_exchange_keys": ("boot.key_exchange_keys", _sha256),
        "allowed": ("secure_boot_keys", _sha256),
        "revoked": ("required_revocations", _sha256),
        "signers": ("boot_signers", _sha256),
        "owner_key_lists": ("machine_owner_key_lists", _digests),
    },
    "boot": {"images": ("boot.images", _digests), "files": ("boot.files", _digests)},
    "command_line": {
        "accepted": ("boot.command_lines", _lines),
        "required": ("boot.required_parameters", _patterns),
        "debugging": ("debugging_parameters", _patterns),
        "weakening": ("weakening_parameters", _patterns),
    },
    "windows": {
        "modules": ("boot.windows_modules", _digests),
        "module_signers": ("boot.windows_module_signers", _texts),
        "code_integrity_policies": ("boot.code_integrity_policies", _digests),
        "minimum_boot_manager_svn": ("boot.minimum_boot_manager_svn", _number),
    },
    "launch": {
        "records": ("boot.launch_records", _sha256),
        "minimum_security_version": ("minimum_security_version", _number),
        "unsafe_accept_any_monitor": ("accept_any_monitor_image", _flag),
        "rules_roots": ("rules_roots", _sha256),
        "fleets": ("fleets", _fleets),
        "monitors": ("monitors", _monitors),
    },
}
