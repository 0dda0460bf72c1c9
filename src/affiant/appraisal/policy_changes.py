"""What an update changed, in words: two policies compared, digests called by their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from affiant.appraisal.policy import AppraisalPolicy

__all__ = ["PolicyChange", "policy_changes"]

_SHOWN: Final = 8
_KERNELS: Final = ("vmlinuz", "vmlinux", "bzimage", "ntoskrnl")
_INITRDS: Final = ("initrd", "initramfs", "linux initrd")
_LOADERS: Final = ("shim", "grub", "bootx64", "bootmgfw", "winload", "systemd-boot")


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """One rule that differs: what it is about, and one sentence for each thing that came or went."""

    subject: str
    sentences: tuple[str, ...]


def policy_changes(
    old: AppraisalPolicy, new: AppraisalPolicy, *, names: Mapping[bytes, str]
) -> tuple[PolicyChange, ...]:
    """Return every difference between two policies; `names` call digests by what people know them as.

    What holds then: equal policies have no changes, and every field that differs is among them.
    """
    return tuple(change for change in _changes(old, new, names) if change.sentences)


def _changes(
    old: AppraisalPolicy, new: AppraisalPolicy, names: Mapping[bytes, str]
) -> Iterator[PolicyChange]:
    before, after = old.boot, new.boot
    told = _Names(names)
    yield told.texts("bank", before.banks, after.banks)
    yield told.texts("PCRs that must replay", _numbers(before.replayed_pcrs), _numbers(after.replayed_pcrs))
    yield told.texts("facts that must be true", before.required_facts, after.required_facts)
    yield told.texts("firmware", before.firmware_versions, after.firmware_versions)
    yield told.digests("platform key (PK)", before.platform_keys, after.platform_keys)
    yield told.digests("key exchange keys (KEK)", before.key_exchange_keys, after.key_exchange_keys)
    yield told.digests("keys trusted by the firmware (db)", old.secure_boot_keys, new.secure_boot_keys)
    yield _revocations(old.required_revocations, new.required_revocations)
    yield told.digests("signers of what was started", old.boot_signers, new.boot_signers)
    yield told.digests(
        "lists of owner keys (MokList)", old.machine_owner_key_lists, new.machine_owner_key_lists
    )
    yield told.digests("boot images: boot loaders and kernels", before.images, after.images)
    yield told.digests("files that the boot loader read", before.files, after.files)
    yield _command_line(before.command_lines, after.command_lines)
    yield told.ordered("parameters that must be there", before.required_parameters, after.required_parameters)
    yield told.ordered("parameters of a debugger", old.debugging_parameters, new.debugging_parameters)
    yield told.ordered(
        "parameters that weaken the kernel", old.weakening_parameters, new.weakening_parameters
    )
    yield told.digests("launch records", before.launch_records, after.launch_records)
    yield told.digests("Windows modules", before.windows_modules, after.windows_modules)
    yield told.texts(
        "signers of Windows modules", before.windows_module_signers, after.windows_module_signers
    )
    yield told.digests(
        "code integrity policies", before.code_integrity_policies, after.code_integrity_policies
    )
    yield _number(
        "security version of Windows' boot manager",
        before.minimum_boot_manager_svn,
        after.minimum_boot_manager_svn,
    )
    yield _number(
        "security version of the monitor", old.minimum_security_version, new.minimum_security_version
    )
    yield told.digests("roots of published rules", old.rules_roots, new.rules_roots)
    yield told.texts("fleets whose rules count", old.fleets or None, new.fleets or None)
    yield told.texts("monitors", _monitors(old), _monitors(new))
    yield _number("any monitor accepted (unsafe)", old.accept_any_monitor_image, new.accept_any_monitor_image)
    yield told.texts("PCRs of a session", _numbers(old.required_pcrs), _numbers(new.required_pcrs))


class _Names:
    def __init__(self, names: Mapping[bytes, str]) -> None:
        self._names = names

    def digests(
        self, subject: str, old: frozenset[bytes] | None, new: frozenset[bytes] | None
    ) -> PolicyChange:
        """Digests that came and went; one that took the place of another of the same name is an update."""
        gone, come = (old or frozenset()) - (new or frozenset()), (new or frozenset()) - (old or frozenset())
        sentences = list(_stated(old, new))
        by_name = {self._names[digest]: digest for digest in sorted(gone) if self._names.get(digest)}
        updated: dict[bytes, bytes] = {}
        for digest in sorted(come):
            replaced = by_name.pop(self._names.get(digest, ""), None)
            if replaced is not None:
                updated[digest] = replaced
        sentences += [
            f"{_kind(self._names[one])}{self._names[one]} is another one: "
            f"{_short(updated[one])} became {_short(one)}"
            for one in sorted(updated, key=lambda one: self._names[one])[:_SHOWN]
        ]
        if len(updated) > _SHOWN:
            sentences.append(f"and {len(updated) - _SHOWN} more are other ones of the same name")
        sentences += _some("new", [self._call(one) for one in come - updated.keys()])
        sentences += _some("no longer there", [self._call(one) for one in gone - set(updated.values())])
        return PolicyChange(subject, tuple(sentences))

    def texts(self, subject: str, old: frozenset[str] | None, new: frozenset[str] | None) -> PolicyChange:
        """Texts that came and went."""
        come, gone = (new or frozenset()) - (old or frozenset()), (old or frozenset()) - (new or frozenset())
        sentences = [*_stated(old, new), *_some("new", list(come)), *_some("no longer there", list(gone))]
        return PolicyChange(subject, tuple(sentences))

    def ordered(self, subject: str, old: tuple[str, ...], new: tuple[str, ...]) -> PolicyChange:
        """As `texts`, and another order, which judges the same but is another policy."""
        change = self.texts(subject, frozenset(old), frozenset(new))
        if old != new and not change.sentences:
            return PolicyChange(subject, ("the same, in another order",))
        return change

    def _call(self, digest: bytes) -> str:
        name = self._names.get(digest, "")
        return f"{_kind(name)}{name} ({_short(digest)})" if name else _short(digest)


def _kind(name: str) -> str:
    """What a file is by its name, as distributions name theirs; "" for others."""
    base = name.replace("\\", "/").rsplit("/", 1)[-1].lower()
    if base.startswith(_LOADERS) and base.endswith((".efi", ".exe")):
        return "boot loader "
    # GRUB's older patches name what they measured by its role.
    if base.startswith(_KERNELS) or base.endswith(" kernel"):
        return "kernel "
    return "initial RAM disk " if base.startswith(_INITRDS) or base.endswith(" initrd") else ""


def _stated(old: frozenset[object] | None, new: frozenset[object] | None) -> Iterator[str]:
    if old is None and new is not None:
        yield "there was no rule, now there is one" + (" which accepts nothing" if not new else "")
    elif old is not None and new is None:
        yield "the rule is gone: anything is accepted"


def _revocations(old: frozenset[bytes], new: frozenset[bytes]) -> PolicyChange:
    come, gone = len(new - old), len(old - new)
    sentences = []
    if come:
        sentences.append(f"dbx update: {come} more revocations, {len(new)} in all")
    if gone:
        sentences.append(f"{gone} revocations are no longer asked for: what they named may start again")
    return PolicyChange("revocations (dbx)", tuple(sentences))


def _command_line(old: frozenset[str] | None, new: frozenset[str] | None) -> PolicyChange:
    """Of one line that became another, the words that came and went."""
    sentences = list(_stated(old, new))
    gone, come = (
        sorted((old or frozenset()) - (new or frozenset())),
        sorted((new or frozenset()) - (old or frozenset())),
    )
    if len(gone) == len(come) == 1:
        before, after = gone[0].split(), come[0].split()
        sentences += _some("parameter added", [word for word in after if word not in before])
        sentences += _some("parameter gone", [word for word in before if word not in after])
        if sorted(before) == sorted(after):
            sentences.append(f"the same parameters otherwise put: {come[0]}")
        if not sentences:
            sentences.append(f"{gone[0]} became {come[0]}")
    else:
        sentences += _some("new line", come)
        sentences += _some("no longer there", gone)
    return PolicyChange("kernel command line", tuple(sentences))


def _some(what: str, items: list[str]) -> list[str]:
    """One sentence for each of a few, and one for the rest."""
    ordered = sorted(items)
    sentences = [f"{what}: {item}" for item in ordered[:_SHOWN]]
    if len(ordered) > _SHOWN:
        sentences.append(f"{what}: {len(ordered) - _SHOWN} more")
    return sentences


def _number(subject: str, old: int, new: int) -> PolicyChange:
    return PolicyChange(subject, () if old == new else (f"{old} became {new}",))


def _numbers(values: frozenset[int] | tuple[int, ...]) -> frozenset[str]:
    return frozenset(map(str, values))


def _monitors(policy: AppraisalPolicy) -> frozenset[str]:
    return frozenset(
        f"{one.version} ({one.security_version}), image {one.image.hex()}" for one in policy.monitors
    )


def _short(digest: bytes) -> str:
    return digest.hex()[:16] + ".."
