"""Makes the corpus: `python -m tests.forgeries.make` writes `cases/` anew, the same octets each time.

Each function is one entry or a few of a kind. A machine really boots (its events are measured into a
TPM in memory), then something is told otherwise. Where the change *happened* and is told, the evidence
is honest and the machine unwelcome.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.efi_variable import SHIM_LOCK
from affiant.tpm.event_log import Event
from affiant.tpm.event_types import EventType
from affiant.tpm.signature_database import encode_certificate_list
from tests.boot_log import BootLog
from tests.forgeries.case import CASES, Case
from tests.forgeries.machine import PCRS, Machine, retyped
from tests.forgeries.signer import AK_ATTRIBUTES, Signer

__all__ = ["all_cases"]

SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256
ATTACKER = encode_certificate_list(SHIM_LOCK, b"\x30\x82\x00\x14the attacker's own k")
WEAK = ("quiet", "quiet module.sig_enforce=0 lockdown=none")


def refused(reason: str, *, family: str = "forged") -> dict[str, Any]:
    """The evidence proves nothing; the message says `reason`."""
    return {"result": "refused", "family": family, "reason": reason}


def concluded(**claims: tuple[bool | None, str] | bool | None) -> dict[str, Any]:
    """The evidence is genuine, and these claims come out so, with these words in their reason."""
    return {
        "result": "concluded",
        "claims": {
            name: {"value": value[0], "reason": value[1]} if isinstance(value, tuple) else {"value": value}
            for name, value in claims.items()
        },
    }


def no_effect() -> dict[str, Any]:
    """The lie is told and changes nothing of what the honest entry concludes."""
    return {"result": "no effect", "as": "honest"}


def honest() -> Iterator[Case]:
    """Evidence that must pass."""
    everything = concluded(
        secure_boot_enabled=True,
        secure_boot_keys_accepted=True,
        boot_signers_accepted=True,
        kernel_known=True,
        command_line_accepted=True,
        kernel_lockdown_enforced=True,
        not_rolled_back=True,
        not_resumed=True,
    )
    last_seen = {"reset_count": 6, "restart_count": 0, "clock": 400_000}
    yield Machine().case("honest", "none: a healthy machine", everything, last_seen=last_seen)
    yield Machine().case(
        "honest-sha1",
        "none: the same machine quoted in its SHA-1 bank, for a verifier that asks for it",
        concluded(secure_boot_enabled=True, secure_boot_keys_accepted=True),
        bank=SHA1,
    )
    yield Machine.truthful("debian12-setup-mode").case(
        "honest-without-secure-boot",
        "none: a machine in setup mode that says so",
        concluded(secure_boot_enabled=(False, "SecureBoot as off")),
    )


def otherwise(
    name: str, change: Callable[[BootLog], object], told: dict[str, Any], lied: dict[str, Any], what: str
) -> Iterator[Case]:
    """Something happened: told as it is, hidden behind the good log, hidden in the data alone."""
    truthful = Machine()
    for log in truthful.both():
        change(log)
    yield truthful.case(f"{name}-told", f"none: {what}, and the log tells it", told)
    lying = Machine()
    change(lying.happened)
    yield lying.case(f"{name}-hidden", f"{what}; the log is that of a healthy machine", lied)


def secure_boot() -> Iterator[Case]:
    """Secure Boot said to be on when it is off."""

    def off(log: BootLog) -> None:
        log.replace_variable("SecureBoot", b"\0")

    yield from otherwise(
        "secure-boot-off",
        off,
        concluded(secure_boot_enabled=(False, "SecureBoot as off"), kernel_lockdown_enforced=False),
        refused("does not replay to the quoted value of PCR 7"),
        "Secure Boot is off",
    )
    machine = Machine()
    for log in machine.both():
        off(log)
    position = machine.told.variable("SecureBoot")
    event = machine.told.events[position]
    machine.told.events[position] = replace(event, data=event.data[:-1] + b"\1")
    yield machine.case(
        "secure-boot-off-data-changed",
        "Secure Boot is off; the event's data says on, its digest is left",
        refused("EV_EFI_VARIABLE_DRIVER_CONFIG, PCR 7) is not what was measured"),
    )
    machine = Machine()
    for log in machine.both():
        off(log)
    good = BootLog.recorded()
    machine.told.events.insert(0, retyped(good.events[good.variable("SecureBoot")], EventType.NO_ACTION))
    yield machine.case(
        "secure-boot-on-in-an-unmeasured-event",
        "Secure Boot is off; an EV_NO_ACTION event, which is never measured, says on",
        concluded(secure_boot_enabled=(False, "SecureBoot as off")),
    )
    machine = Machine()
    for log in machine.both():
        off(log)
        log.events.append(good.events[good.variable("SecureBoot")])
    yield machine.case(
        "secure-boot-on-measured-by-the-guest",
        "Secure Boot is off; the booted system extends PCR 7 with an event that says on",
        concluded(secure_boot_enabled=(False, "SecureBoot as off"), secure_boot_explained=False),
    )


def keys() -> Iterator[Case]:
    """db and dbx."""
    recorded = BootLog.recorded()
    event = recorded.events[recorded.variable("db")]
    database = event.data[32 + 2 * len("db") :]
    yield from otherwise(
        "attacker-key-in-db",
        lambda log: log.replace_variable("db", database + ATTACKER),
        concluded(secure_boot_enabled=True, secure_boot_keys_accepted=(False, "db")),
        refused("does not replay to the quoted value of PCR 7"),
        "the attacker's certificate is in db",
    )
    yield from otherwise(
        "emptied-dbx",
        lambda log: log.replace_variable("dbx", b""),
        concluded(secure_boot_enabled=True, secure_boot_keys_accepted=(False, "dbx")),
        refused("does not replay to the quoted value of PCR 7"),
        "dbx was emptied",
    )
    machine = Machine()
    log = machine.told
    first, second = log.variable("db"), log.variable("dbx")
    log.events[first] = replace(log.events[first], data=log.events[second].data)
    yield machine.case(
        "digest-of-another-events-data",
        "the event that measured db shows the data of the one that measured dbx",
        refused("EV_EFI_VARIABLE_DRIVER_CONFIG, PCR 7) is not what was measured"),
    )
    machine = Machine()
    log = machine.told
    ours, theirs = log.events[first], log.events[second]
    log.events[first] = replace(ours, digests=theirs.digests)
    log.events[second] = replace(theirs, digests=ours.digests)
    yield machine.case(
        "digests-exchanged",
        "the digests of db and dbx stand beside each other's data",
        refused("does not replay to the quoted value of PCR 7"),
    )


def command_line() -> Iterator[Case]:
    """What the kernel was told."""
    yield from otherwise(
        "command-line-changed",
        lambda log: log.replace_text(*WEAK),
        concluded(command_line_accepted=(False, "module.sig_enforce=0"), secure_boot_enabled=True),
        refused("does not replay to the quoted value of PCR 8"),
        "the kernel was booted with its protections off",
    )
    machine = Machine()
    machine.happened.replace_text(*WEAK)
    machine.told = machine.happened.copy()
    for position, event in enumerate(machine.told.events):
        if event.pcr == 8:
            data = event.data.replace(WEAK[1].encode(), WEAK[0].encode())
            machine.told.events[position] = replace(event, data=data)
    yield machine.case(
        "command-line-changed-in-the-data",
        "the kernel was booted with its protections off; the strings of the log are those of a healthy boot",
        concluded(
            boot_commands_explained=False,
            kernel_known=(None, "missing from the log"),
            command_line_accepted=(None, "cannot be told"),
        ),
    )
    machine = Machine()
    for log in machine.both():
        log.append(8, EventType.IPL, b"kernel_cmdline: /vmlinuz quiet\0", of=b"/vmlinuz quiet")
    machine.happened.replace_text(*WEAK)
    machine.told.replace_text(*WEAK)
    yield machine.case(
        "a-harmless-command-line-planted",
        "the kernel was booted with its protections off; the guest measures a harmless command line after it",
        concluded(command_line_accepted=(False, "module.sig_enforce=0")),
    )


def events() -> Iterator[Case]:
    """Events taken out, put in, doubled, moved, renamed."""
    replay = "does not replay to the quoted value of PCR"
    bends: dict[str, tuple[str, Callable[[list[Event]], object], dict[str, Any]]] = {
        "event-removed": ("an event is left out", lambda e: e.pop(30), refused(f"{replay} 8")),
        "event-appended": ("an event is added", lambda e: e.append(e[4]), refused(f"{replay} 7")),
        "event-duplicated": ("an event stands twice", lambda e: e.insert(5, e[5]), refused(f"{replay} 7")),
        "events-reordered": (
            "two events of PCR 7 changed places",
            lambda e: e.insert(3, e.pop(4)),
            refused(f"{replay} 7"),
        ),
        "event-of-another-pcr": (
            "an event of PCR 8 is told as one of PCR 9",
            lambda e: e.__setitem__(30, replace(e[30], pcr=9)),
            refused(f"{replay} 8, 9"),
        ),
        "event-made-unmeasured": (
            "an event of PCR 8 is told as EV_NO_ACTION",
            lambda e: e.__setitem__(30, retyped(e[30], EventType.NO_ACTION)),
            refused(f"{replay} 8"),
        ),
        "locality-invented": (
            "a Startup Locality event that did not happen",
            lambda e: e.insert(0, Event(0, 0, EventType.NO_ACTION, e[0].digests, b"StartupLocality\0\3")),
            refused(f"{replay} 0"),
        ),
        "hardware-crtm-invented": (
            "the first measurement is told as that of a hardware CRTM",
            lambda e: e.__setitem__(0, retyped(e[0], EventType.EFI_HCRTM_EVENT)),
            refused(f"{replay} 0"),
        ),
        "crtm-and-separators-missing": (
            "PCR 0 to 3 are said to be empty",
            lambda e: e.__setitem__(slice(None), [one for one in e if one.pcr > 3]),
            refused(f"{replay} 0, 1, 2, 3"),
        ),
    }
    for name, (lie, bend, verdict) in bends.items():
        machine = Machine()
        bend(machine.told.events)
        yield machine.case(name, lie, verdict)
    yield from _types()


def _types() -> Iterator[Case]:
    machine = Machine()
    position = machine.told.variable("SecureBoot")
    machine.told.events[position] = retyped(machine.told.events[position], EventType.EFI_VARIABLE_AUTHORITY)
    yield machine.case(
        "type-changed-variable",
        "the firmware's SecureBoot variable is told as an authority",
        concluded(secure_boot_enabled=(None, "not measured"), boot_signers_accepted=False),
    )
    machine = Machine()
    for position, event in enumerate(machine.told.events):
        if event.type == EventType.EFI_VARIABLE_AUTHORITY:
            machine.told.events[position] = retyped(event, EventType.POST_CODE)
    yield machine.case(
        "type-changed-authorities",
        "the authorities that vouched for the boot are told as something else",
        concluded(secure_boot_explained=False, boot_signers_accepted=(None, "unexplained")),
    )
    machine = Machine()
    for position, event in enumerate(machine.told.events):
        if event.type == EventType.SEPARATOR and event.pcr < 4:
            machine.told.events[position] = retyped(event, EventType.POST_CODE)
    yield machine.case("type-changed-separators", "separators are told as something else", no_effect())
    machine = Machine()
    for log in machine.both():
        log.events = [event for event in log.events if event.pcr > 3]
    yield machine.case(
        "bank-left-to-the-guest",
        "the firmware measured nothing into this bank; the guest extends events of its own making",
        concluded(firmware_measured=False),
    )


def closed() -> Iterator[Case]:
    """systemd's separators after the boot, which no firmware's log holds."""
    separators = [(pcr, b"os-separator") for pcr in (*range(8), 9, 14)] + [(9, b"nvpcr-separator")]
    again, hidden = (7, b"os-separator"), (4, b"another image")
    told = "none: systemd closed the boot in its initial RAM disk, as it does since version 261"
    bends: dict[str, tuple[str, list[tuple[int, bytes]], dict[str, Any]]] = {
        "closed-by-systemd": (told, separators, no_effect()),
        "closed-twice": (
            "systemd's separator was measured into PCR 7 a second time",
            [*separators, again],
            refused("does not replay to the quoted value of PCR 7"),
        ),
        "closed-after-a-hidden-image": (
            "another image was measured before systemd closed the boot, and is not told",
            [hidden, *separators],
            refused("does not replay to the quoted value of PCR 4"),
        ),
        "closed-before-a-hidden-image": (
            "another image was measured after systemd closed the boot, and is not told",
            [*separators, hidden],
            refused("does not replay to the quoted value of PCR 4"),
        ),
    }
    for name, (lie, measured, verdict) in bends.items():
        machine = Machine()
        for pcr, text in measured:
            digests = {int(bank): bank.digest(text) for bank in HashAlgorithm}
            machine.happened.events.append(Event(0, pcr, EventType.IPL, digests, text))
        yield machine.case(name, lie, verdict)


def quotes() -> Iterator[Case]:
    """What was signed."""
    machine = Machine()
    yield machine.case(
        "replayed-quote",
        "a quote that answers to an earlier challenge",
        refused("extraData is not the one expected"),
        attest=machine.attest(nonce=bytes(32)),
    )
    healthy, victim = Machine(), Machine()
    victim.happened.replace_variable("SecureBoot", b"\0")
    yield victim.case(
        "log-of-another-boot",
        "the log of a healthy boot beside the quote of another",
        refused("does not replay to the quoted value of PCR 7"),
    )
    victim.values = {7: healthy.pcrs()[7]}
    yield victim.case(
        "pcr-values-of-another-boot",
        "PCR values of a healthy boot beside the quote of another",
        refused("not those whose digest is signed"),
    )
    # PCR 23 can be reset by anybody: here it holds what a healthy PCR 7 would.
    signer = Signer()
    values = victim.pcrs() | {23: healthy.pcrs()[7]}
    relabelled = signer.attest(values, selected=[*(pcr for pcr in PCRS if pcr != 7), 23])
    victim.values = {7: healthy.pcrs()[7], 23: healthy.pcrs()[7]}
    yield victim.case(
        "quote-over-other-pcrs",
        "PCR 23, which anybody can reset and extend, is quoted and told as PCR 7",
        refused("signed selection lacks PCR 7"),
        attest=relabelled,
    )
    machine = Machine()
    fewer = signer.attest(machine.pcrs(), selected=[pcr for pcr in PCRS if pcr != 14])
    yield machine.case(
        "quote-without-a-pcr",
        "PCR 14, with the machine owner's keys, is left out of the quote",
        refused("signed selection lacks PCR 14"),
        attest=fewer,
    )
    yield machine.case(
        "quote-of-another-bank",
        "the SHA-1 bank is quoted where SHA-256 is asked for",
        refused("(sha1) is missing", family="malformed"),
        attest=machine.attest(bank=SHA1),
        shown=SHA256,
    )
    yield from _structures(machine)
    yield from _counters(machine)


def _structures(machine: Machine) -> Iterator[Case]:
    malformed = "malformed"
    yield machine.case(
        "wrong-magic",
        "the signed structure does not begin as the TPM's own do",
        refused("is not TPM_GENERATED_VALUE", family=malformed),
        attest=machine.attest(magic=0xFF544348),
    )
    yield machine.case(
        "not-a-quote",
        "the signed structure is said to be a certification",
        refused("", family=malformed),
        attest=machine.attest(kind=0x8017),
    )
    attest = machine.attest()
    yield machine.case(
        "trailing-octets-signed",
        "octets after the signed structure, signed with it",
        refused("after its end", family=malformed),
        attest=attest + b"\0",
    )
    yield machine.case(
        "trailing-octets-in-the-signature",
        "octets after the signature",
        refused("after its end", family=malformed),
        signature=machine.signer.sign(attest) + b"\0",
    )
    bent = Machine()
    bent.tail = b"\0" * 5
    yield bent.case(
        "trailing-octets-in-the-log", "octets after the log", refused("ends inside event", family=malformed)
    )
    bent = Machine()
    bent.octets = bent.told.encode()[:-9]
    yield bent.case(
        "log-cut-off", "the log ends inside an event", refused("ends inside event", family=malformed)
    )
    other = Signer("another key")
    yield machine.case(
        "signed-by-another-key",
        "another key signed than the one that is shown",
        refused("signature is not by this key"),
        signature=other.sign(attest),
    )
    yield machine.case(
        "signature-of-another-quote",
        "the signature belongs to another quote of the same key",
        refused("signature is not by this key"),
        signature=machine.signer.sign(machine.attest(clock=1)),
    )
    loose = Signer(attributes=AK_ATTRIBUTES & ~0x00010000)
    unrestricted = Machine(signer=loose)
    yield unrestricted.case(
        "unrestricted-key",
        "a key that signs anything signs what looks like a quote",
        refused("restricted is not set"),
    )


def _counters(machine: Machine) -> Iterator[Case]:
    last_seen = {"reset_count": 7, "restart_count": 0, "clock": 500_000}
    older = "an older state was restored"
    yield machine.case(
        "reset-counter-back",
        "the reset counter went back: a snapshot of the machine and its TPM",
        concluded(not_rolled_back=(False, older)),
        attest=machine.attest(resets=6, clock=900_000),
        last_seen=last_seen,
    )
    yield machine.case(
        "clock-back",
        "the clock went back within one boot",
        concluded(not_rolled_back=(False, older)),
        attest=machine.attest(clock=499_999),
        last_seen=last_seen,
    )
    yield machine.case(
        "resumed",
        "the machine was suspended and resumed since its boot",
        concluded(not_resumed=False),
        attest=machine.attest(restarts=1),
        last_seen=last_seen,
    )


def structure_of_the_log() -> Iterator[Case]:
    """Logs that two readers could read differently."""
    machine = Machine()
    machine.told.head = machine.told.head.replace(struct.pack("<HH", 0x0B, 32), struct.pack("<HH", 0x0B, 20))
    machine.octets = machine.told.encode()
    yield machine.case(
        "digest-size-redefined",
        "the head of the log declares SHA-256 digests of 20 octets",
        refused("declared with 20 octets", family="malformed"),
    )
    machine = Machine()
    event = machine.told.events[3]
    octets = machine.told.encode()
    pair = struct.pack("<H", 4) + event.digests[4]
    other = struct.pack("<H", 0x0B) + event.digests[0x0B]
    machine.octets = octets.replace(pair + other, other + other)
    yield machine.case(
        "digest-twice",
        "an event has two digests of one algorithm",
        refused("twice", family="malformed"),
    )


def all_cases() -> list[Case]:
    """The whole corpus."""
    makers = (honest, secure_boot, keys, command_line, events, closed, quotes, structure_of_the_log)
    return [case for maker in makers for case in maker()]


if __name__ == "__main__":
    CASES.mkdir(exist_ok=True)
    for path in CASES.glob("*.json"):
        path.unlink()
    for entry in all_cases():
        entry.write(CASES)
