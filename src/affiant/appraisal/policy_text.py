"""Writing a policy as TOML that a person can read and change: every rule with a comment, every digest named.

What is written reads back as the same policy (`affiant.appraisal.policy_file`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from affiant.appraisal.boot_rules import BootRules
from affiant.appraisal.policy import AppraisalPolicy
from affiant.appraisal.policy_file import FORMAT

__all__ = ["write_policy"]

_SHORT_LIST = 100  # columns of a list that stays on one line
_ESCAPES = {"\\": "\\\\", '"': '\\"'}


def write_policy(policy: AppraisalPolicy, *, names: Mapping[bytes, str], head: Iterable[str]) -> str:
    """Return the file's text; `head` are lines of comment that say where it comes from.

    `names` are put beside digests as comments. Rules that are not stated are left out.
    """
    writer = _Writer(names)
    writer.comment(*head)
    writer.lines.append(f"format = {FORMAT}")
    rules = policy.boot
    _write_evidence(writer, rules)
    _write_secure_boot(writer, policy)
    _write_boot(writer, policy)
    if rules.windows_modules is not None or rules.windows_module_signers is not None:
        _write_windows(writer, rules)
    _write_launch(writer, policy)
    return "\n".join(writer.lines) + "\n"


def _write_evidence(writer: _Writer, rules: BootRules) -> None:
    if rules.banks is not None or rules.replayed_pcrs:
        writer.section("quote", "The bank and the PCRs onto which the event log must replay.")
        if rules.banks is not None:
            writer.texts("banks", rules.banks)
        if rules.replayed_pcrs:
            writer.lines.append(f"pcrs = [{', '.join(map(str, sorted(rules.replayed_pcrs)))}]")
    if rules.required_facts:
        writer.section("facts", "What must be true of the boot; a fact that is not told counts as false.")
        writer.texts("required", rules.required_facts)
    if rules.firmware_versions is not None:
        writer.section("firmware", "The firmware (S-CRTM) versions that may start the machine.")
        writer.texts("versions", rules.firmware_versions)


def _write_secure_boot(writer: _Writer, policy: AppraisalPolicy) -> None:
    rules = policy.boot
    writer.section("secure_boot", "Keys by the SHA-256 of their certificates; images by their own digest.")
    if rules.platform_keys is not None:
        writer.digests("platform_keys", rules.platform_keys, "PK: who owns the machine's Secure Boot.")
    if rules.key_exchange_keys is not None:
        writer.digests("key_exchange_keys", rules.key_exchange_keys, "KEK: who may change db and dbx.")
    writer.digests("allowed", policy.secure_boot_keys, "db: nothing else may stand in it.")
    writer.digests(
        "signers", policy.boot_signers, "Nobody else may have vouched for what was started (PCR 7)."
    )
    writer.digests(
        "owner_key_lists",
        policy.machine_owner_key_lists,
        "shim's MokList, if it holds a machine owner's keys.",
    )
    writer.digests(
        "revoked", policy.required_revocations, "dbx: must hold all of these; an update may add to them."
    )


def _write_boot(writer: _Writer, policy: AppraisalPolicy) -> None:
    rules = policy.boot
    if rules.images is not None or rules.files is not None:
        writer.section("boot", "What may be started and read. The names are the log's own words.")
        if rules.images is not None:
            writer.digests("images", rules.images, "EFI images (PCR 4): boot loaders and kernels.")
        if rules.files is not None:
            writer.digests(
                "files", rules.files, "Files (PCR 9): kernel, initial RAM disk, GRUB's configuration."
            )
    writer.section("command_line", "The kernel's command line.")
    if rules.command_lines is not None:
        writer.comment("Nothing but these, without the kernel's path before them.")
        writer.texts("accepted", rules.command_lines)
    if rules.required_parameters:
        writer.comment("Each of these must be there.")
        writer.texts("required", rules.required_parameters, keep_order=True)
    writer.comment(
        "Parameters that open the kernel to a debugger, and that weaken its protection: a name,",
        "name=value, or either with a final *.",
    )
    writer.texts("debugging", policy.debugging_parameters, keep_order=True)
    writer.texts("weakening", policy.weakening_parameters, keep_order=True)


def _write_windows(writer: _Writer, rules: BootRules) -> None:
    writer.section(
        "windows", "What Windows' loaders may load (PCR 13), by Authenticode digest and by signer."
    )
    if rules.minimum_boot_manager_svn:
        writer.lines.append(f"minimum_boot_manager_svn = {rules.minimum_boot_manager_svn}")
    if rules.windows_module_signers is not None:
        writer.texts("module_signers", rules.windows_module_signers)
    if rules.code_integrity_policies:
        comment = "Code integrity policies that must be in force."
        writer.digests("code_integrity_policies", rules.code_integrity_policies, comment)
    if rules.windows_modules is not None:
        comment = "Every update of Windows changes some; leave the rule out to go by signers alone."
        writer.digests("modules", rules.windows_modules, comment)


def _write_launch(writer: _Writer, policy: AppraisalPolicy) -> None:
    writer.section("launch", "The monitor that may be launched beside the guest.")
    if policy.boot.launch_records is not None:
        writer.digests("records", policy.boot.launch_records, "SHA-256 of launch records (PCR 17).")
    writer.lines.append(f"minimum_security_version = {policy.minimum_security_version}")
    if policy.rules_roots:
        comment = "SHA-256 of root files under which monitors may take published rules."
        writer.digests("rules_roots", policy.rules_roots, comment)
    if policy.fleets:
        writer.texts("fleets", policy.fleets)
    if policy.accept_any_monitor_image:
        writer.comment("UNSAFE: any program may speak for a guest.")
        writer.lines.append("unsafe_accept_any_monitor = true")
    for monitor in sorted(policy.monitors):
        writer.lines += [
            "",
            "[[launch.monitors]]",
            f"image = {_quote(monitor.image.hex())}",
            f"version = {_quote(monitor.version)}",
            f"security_version = {monitor.security_version}",
        ]


class _Writer:
    def __init__(self, names: Mapping[bytes, str]) -> None:
        self._names = names
        self.lines: list[str] = []

    def comment(self, *lines: str) -> None:
        self.lines += [f"# {_printable(line)}".rstrip() for line in lines]

    def section(self, name: str, comment: str) -> None:
        self.lines += ["", f"[{name}]"]
        self.comment(comment)

    def digests(self, key: str, digests: Iterable[bytes], comment: str) -> None:
        self.comment(comment)
        ordered = sorted(digests, key=lambda digest: (self._names.get(digest, ""), digest))
        entries = [(_quote(digest.hex()), self._names.get(digest, "")) for digest in ordered]
        self._list(key, entries)

    def texts(self, key: str, texts: Iterable[str], *, keep_order: bool = False) -> None:
        ordered = list(texts) if keep_order else sorted(texts)
        self._list(key, [(_quote(text), "") for text in ordered])

    def _list(self, key: str, entries: list[tuple[str, str]]) -> None:
        short = f"{key} = [{', '.join(entry for entry, _ in entries)}]"
        if len(short) <= _SHORT_LIST and not any(name for _, name in entries):
            self.lines.append(short)
            return
        self.lines.append(f"{key} = [")
        self.lines += [f"  {entry}," + (f" # {_printable(name)}" if name else "") for entry, name in entries]
        self.lines.append("]")


def _quote(text: str) -> str:
    """A basic string of TOML 1.0: control characters are escaped, all else stands as it is."""
    return '"' + "".join(_escape(character) for character in text) + '"'


def _escape(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    return character if character.isprintable() else _unicode(ord(character))


def _unicode(code: int) -> str:
    # A lone surrogate is no Unicode scalar value, so TOML cannot hold it; logs are decoded without them.
    return f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
