"""What Windows measured besides yes and no: keys, modules, policies, counters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from affiant.model.errors import MalformedError
from affiant.tpm.windows.bitlocker import BitLockerUnlock
from affiant.tpm.windows.configuration_log import ConfigurationLog, Found
from affiant.tpm.windows.elam import ElamConfiguration, elam_drivers, read_elam_configuration
from affiant.tpm.windows.identity_key import IdentityKey, read_identity_key
from affiant.tpm.windows.little_endian import decode_utf16
from affiant.tpm.windows.modules import LoadedModule, read_module
from affiant.tpm.windows.policies import (
    CodeIntegrityPolicy,
    RevocationList,
    SecureBootPolicy,
    read_code_integrity_policy,
    read_revocation_list,
    read_secure_boot_policy,
)
from affiant.tpm.windows.sipa import Sipa

__all__ = ["WindowsDetails", "read_details"]

_DETAILS: Final = 12
_MODULES: Final = 13
_AUTHORITIES: Final = 14
_LAUNCH_STATE: Final = 20
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class WindowsDetails:
    """What the events of a configuration log say, as far trusted as that log is.

    - `signing_key` (IDKS) and `encryption_key` (IDK): the VSM identity keys; None unless measured once
    - `modules`: PCR 13, in the order of loading; `elam_drivers` are those among them
    - `authorities`: SubjectPublicKeyInfo (DER) of the signers, PCR 14
    - `boot_manager_svn`: the boot manager's security version; None when not measured
    - revocation lists and policies: each once, in measured order
    - `boot_counter` equals the TPM's resetCount; `event_counter` and `counter_id`: a monotonic counter
    - `transfers`: to what control was handed: 1 loader, 2 resume loader, 5 hypervisor
    - `data_execution_prevention`: 0 opt in, 1 opt out, 2 always off, 3 always on
    - `iommu_policy`, `driver_load_policy`, `smt_status`, `lsa_isolation`: numbers as measured
    - `smm_level`: protection against System Management Mode as the dynamic launch measured it (PCR 20);
      Windows does not publish what the numbers mean
    - `unread`: known events that could not be decoded, for people; nothing above is made of them
    """

    signing_key: IdentityKey | None
    encryption_key: IdentityKey | None
    modules: tuple[LoadedModule, ...]
    elam_drivers: tuple[LoadedModule, ...]
    elam_configurations: tuple[ElamConfiguration, ...]
    authorities: tuple[bytes, ...]
    boot_manager_svn: int | None
    boot_revocation_lists: tuple[RevocationList, ...]
    os_revocation_lists: tuple[RevocationList, ...]
    code_integrity_policies: tuple[CodeIntegrityPolicy, ...]
    secure_boot_policies: tuple[SecureBootPolicy, ...]
    bitlocker_unlocks: tuple[BitLockerUnlock, ...]
    boot_counter: int | None
    event_counter: int | None
    counter_id: int | None
    transfers: tuple[int, ...]
    system_root: str | None
    data_execution_prevention: int | None
    iommu_policy: int | None
    driver_load_policy: int | None
    smt_status: int | None
    lsa_isolation: int | None
    smm_level: int | None
    unread: tuple[str, ...]


def read_details(log: ConfigurationLog) -> WindowsDetails:
    """Read everything that `log` holds; what cannot be decoded is named in `unread` and left out."""
    reader = _Reader(log)
    modules = reader.each(Sipa.LOADED_MODULE_AGGREGATION, _MODULES, lambda found: read_module(found.event))
    return WindowsDetails(
        signing_key=reader.key(Sipa.VSM_IDKS_INFO),
        encryption_key=reader.key(Sipa.VSM_IDK_INFO),
        modules=modules,
        elam_drivers=elam_drivers(modules),
        elam_configurations=reader.each(
            Sipa.ELAM_AGGREGATION, _DETAILS, lambda found: read_elam_configuration(found.event)
        ),
        authorities=reader.once(Sipa.AUTHORITY_PUBLIC_KEY, _AUTHORITIES, bytes),
        boot_manager_svn=reader.first(Sipa.APPLICATION_SVN),
        boot_revocation_lists=reader.once(Sipa.BOOT_REVOCATION_LIST, _MODULES, read_revocation_list),
        os_revocation_lists=reader.once(Sipa.OS_REVOCATION_LIST, _MODULES, read_revocation_list),
        code_integrity_policies=reader.once(Sipa.SI_POLICY, _MODULES, read_code_integrity_policy),
        secure_boot_policies=reader.once(Sipa.SBCP_INFO, _MODULES, read_secure_boot_policy),
        bitlocker_unlocks=tuple(BitLockerUnlock(value) for value in reader.numbers(Sipa.BITLOCKER_UNLOCK)),
        boot_counter=reader.single(Sipa.BOOT_COUNTER),
        event_counter=reader.single(Sipa.EVENT_COUNTER),
        counter_id=reader.single(Sipa.COUNTER_ID),
        transfers=reader.numbers(Sipa.TRANSFER_CONTROL),
        system_root=reader.text(Sipa.SYSTEM_ROOT),
        data_execution_prevention=reader.single(Sipa.DATA_EXECUTION_PREVENTION),
        iommu_policy=reader.single(Sipa.HYPERVISOR_IOMMU_POLICY),
        driver_load_policy=reader.single(Sipa.DRIVER_LOAD_POLICY),
        smt_status=reader.single(Sipa.SMT_STATUS),
        lsa_isolation=reader.single(Sipa.LSAISO_CONFIG),
        smm_level=reader.single(Sipa.DRTM_SMM_LEVEL, _LAUNCH_STATE),
        unread=tuple(dict.fromkeys(reader.unread)),
    )


class _Reader:
    """Reads payloads out of one log, and remembers what could not be read."""

    def __init__(self, log: ConfigurationLog) -> None:
        self._log = log
        self.unread: list[str] = []

    def each(self, identifier: Sipa, pcr: int, read: Callable[[Found], _Value]) -> tuple[_Value, ...]:
        values = []
        for found in self._log.find(identifier, (pcr,)):
            try:
                values.append(read(found))
            except MalformedError:
                self.unread.append(found.source)
        return tuple(values)

    def once(self, identifier: Sipa, pcr: int, read: Callable[[bytes], _Value]) -> tuple[_Value, ...]:
        """Each different value once: Windows repeats what it knows at each hand-over."""
        return tuple(dict.fromkeys(self.each(identifier, pcr, lambda found: read(found.event.payload))))

    def numbers(self, identifier: Sipa, pcr: int = _DETAILS) -> tuple[int, ...]:
        return self.each(identifier, pcr, _number)

    def first(self, identifier: Sipa) -> int | None:
        return next(iter(self.numbers(identifier)), None)

    def single(self, identifier: Sipa, pcr: int = _DETAILS) -> int | None:
        """The value, None when there is none or when two differ."""
        values = set(self.numbers(identifier, pcr))
        return values.pop() if len(values) == 1 else None

    def text(self, identifier: Sipa) -> str | None:
        values = self.once(identifier, _DETAILS, lambda payload: decode_utf16(payload, identifier.name))
        return values[0] if len(values) == 1 else None

    def key(self, identifier: Sipa) -> IdentityKey | None:
        # One boot has one key: were there two, anybody's choice between them would be a guess.
        keys = self.each(identifier, _DETAILS, lambda found: read_identity_key(found.event.payload))
        measured = self._log.find(identifier, (_DETAILS,))
        return keys[0] if len(keys) == len(measured) == 1 else None


def _number(found: Found) -> int:
    number = found.event.number
    if number is None:
        raise MalformedError(f"{found.source}: no number")
    return number
