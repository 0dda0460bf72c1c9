"""Recorded boots of real unified kernel images: firmware's log, systemd's log and quote are of one boot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from affiant.cli import main
from affiant.tpm.cel import UserspaceRecord, parse_userspace_log
from tests.unit.boot.test_explain import Capture, explain, page, trusts

VECTORS = sorted((Path(__file__).parents[2] / "vectors" / "userspace").glob("*.json"))
OTHERS = sorted((Path(__file__).parents[2] / "vectors" / "boot").glob("*.bin"))
BANKS = ("sha1", "sha256", "sha384", "sha512")
SECTIONS = [".linux", ".osrel", ".cmdline", ".initrd", ".uname", ".sbat", ".pcrpkey"]  # as they are measured
VAULT = "cryptsetup:vault:"
PHASES = ["enter-initrd", "leave-initrd", "sysinit", "ready"]
# What each machine did, in its order: PCR, event type, and how the text begins.
HAPPENED: dict[str, list[tuple[int | None, str, str]]] = {
    "debian-trixie-systemd-257": [
        (11, "phase", "enter-initrd"),
        (11, "phase", "leave-initrd"),
        (15, "machine-id", "machine-id:6166666961e74d4b8a556b6920766563"),
        (15, "filesystem", "file-system:/:ext4:"),
        (11, "phase", "sysinit"),
        (11, "phase", "ready"),
        (15, "volume-key", VAULT),
    ],
    "debian-sid-systemd-262": [
        *((pcr, "os-separator", "os-separator") for pcr in (*range(8), 9, 12, 13, 14)),
        (11, "phase", "enter-initrd"),
        (9, "nvpcr-separator", "nvpcr-separator"),
        (11, "phase", "leave-initrd"),
        (15, "machine-id", "machine-id:6166666961e74d4b8a556b6920766563"),
        (15, "filesystem", "file-system:/:ext4:"),
        (11, "phase", "sysinit"),
        (11, "phase", "ready"),
        (15, "volume-key", VAULT),
    ],
}


@dataclass(frozen=True)
class Recorded:
    """One vector, with its parts written as the files that `affiant boot explain` takes."""

    path: Path
    folder: Path

    @property
    def told(self) -> dict[str, Any]:
        decoded: dict[str, Any] = json.loads(self.path.read_text())
        return decoded

    @property
    def userspace(self) -> bytes:
        return self.path.with_suffix(".log").read_bytes()

    @property
    def records(self) -> tuple[UserspaceRecord, ...]:
        return parse_userspace_log(self.userspace).records

    def write(self, *, bank: str | None = None, log: bytes | None = None) -> list[str]:
        """The log and PCR values: with the quote, or (nobody signed them) those of one bank."""
        told, words = self.told, [str(self.path.with_suffix(".bin"))]
        for name in ("quote", "signature", "ak") if bank is None else ():
            (self.folder / name).write_bytes(bytes.fromhex(told[name]))
            words += [f"--{name}", str(self.folder / name)]
        if bank is None:
            words += ["--nonce", told["nonce"]]
        values = {one: told["pcrs"][one] for one in (BANKS if bank is None else (bank,))}
        (self.folder / "pcrs").write_text(json.dumps(values))
        (self.folder / "userspace").write_bytes(self.userspace if log is None else log)
        return [*words, "--pcrs", str(self.folder / "pcrs")]

    def with_log(self, *, bank: str | None = None, log: bytes | None = None) -> list[str]:
        return [*self.write(bank=bank, log=log), "--cel", str(self.folder / "userspace")]


@pytest.fixture(params=VECTORS, ids=lambda path: path.stem)
def recorded(request: pytest.FixtureRequest, tmp_path: Path) -> Recorded:
    return Recorded(request.param, tmp_path)


def test_there_are_vectors() -> None:
    assert {path.stem for path in VECTORS} == HAPPENED.keys()


def test_systemd_s_log_holds_what_happened(recorded: Recorded) -> None:
    happened = HAPPENED[recorded.path.stem]
    assert [(one.pcr, one.kind) for one in recorded.records] == [(pcr, kind) for pcr, kind, _ in happened]
    for one, (_, _, beginning) in zip(recorded.records, happened, strict=True):
        assert one.text.startswith(beginning)
    assert len({one.boot for one in recorded.records}) == 1


def test_the_quote_proves_both_logs(recorded: Recorded, capsys: Capture) -> None:
    code, found = explain(capsys, *recorded.with_log())
    assert (code, found["refused"]) == (0, None)
    # PCR 10 is IMA's, whose list is not part of the vector.
    assert found["proof"]["replayed_pcrs"] == [*range(10), *range(11, 16)]
    userspace = found["userspace"]
    assert userspace["unreached_pcrs"] == []
    assert {11, 15} <= set(userspace["reached_pcrs"])
    for one, record in zip(userspace["list"], recorded.records, strict=True):
        quoted = record.pcr is not None
        assert one["digest"]["trust"] == ("verified" if quoted else "untrusted")
        # Of a volume's key the log holds a description only.
        covered = quoted and not record.text.startswith(VAULT)
        assert one["text"] == {"value": record.text, "trust": "verified" if covered else "untrusted"}


@pytest.mark.parametrize("bank", BANKS)
def test_both_logs_lead_to_the_values_of_every_bank(recorded: Recorded, capsys: Capture, bank: str) -> None:
    code, found = explain(capsys, *recorded.with_log(bank=bank))
    assert (code, found["refused"], found["log"]["bank"]) == (0, None, bank)
    assert found["proof"]["unreplayed_pcrs"] == [10]
    assert found["userspace"]["unreached_pcrs"] == []
    assert trusts(found) == {"untrusted"}


def test_the_sections_are_those_of_the_image(recorded: Recorded, capsys: Capture) -> None:
    """The vector's digests were computed from the image, not from what was measured."""
    _, found = explain(capsys, *recorded.with_log())
    image, made = found["details"]["unified_kernel_image"], recorded.told["sections"]
    assert image["trust"] == "verified"
    assert [(one["section"], one["digest"]) for one in image["value"]] == [
        (name, made[name]) for name in SECTIONS if name in made
    ]


def test_what_was_taken_beside_the_image_is_told(recorded: Recorded, capsys: Capture) -> None:
    _, found = explain(capsys, *recorded.with_log())
    details = found["details"]
    added = recorded.told["command_line"].split()[-1]
    assert details["command_lines_beside_image"] == {"value": [added], "trust": "verified"}
    (credentials,) = details["taken_beside_image"]
    assert credentials["name"] == {"value": "Global credentials initrd", "trust": "untrusted"}
    assert credentials["digest"]["trust"] == "verified"
    assert details["system_extensions"] == []


def test_the_digest_of_the_kernel_s_options_is_of_all_its_command_line(
    recorded: Recorded, capsys: Capture
) -> None:
    """Linux measures what it got (PCR 9): the image's own line and the one beside it, in UTF-16."""
    _, found = explain(capsys, *recorded.with_log())
    (options,) = [
        one for one in found["details"]["files"] if one["name"]["value"] == "LOADED_IMAGE::LoadOptions"
    ]
    line = (recorded.told["command_line"] + "\0").encode("utf-16-le")
    assert options["digest"] == {"value": hashlib.sha256(line).hexdigest(), "trust": "verified"}


def test_a_part_of_the_command_line_is_not_told_as_all_of_it(
    recorded: Recorded, capsys: Capture, tmp_path: Path
) -> None:
    """Without systemd's log PCR 11 is not replayed, and does not tell whether the image has its own line."""
    added = recorded.told["command_line"].split()[-1]
    policy = tmp_path / "policy.toml"
    policy.write_text(f'format = 1\n[command_line]\naccepted = ["{added}"]\n')
    for words in (recorded.write(), recorded.with_log()):
        code, found = explain(capsys, *words, "--policy", str(policy))
        assert found["details"]["command_lines"]["value"] is None
        assert found["facts"]["command_line_accepted"]["value"] is None
        assert code == 1
        assert any("cannot be told" in finding["found"] for finding in found["policy"]["findings"])


def test_the_story_is_told(recorded: Recorded, capsys: Capture) -> None:
    code, text = page(capsys, *recorded.with_log())
    assert code == 0
    for line in (
        "+ A unified kernel image was started, with .linux, .osrel, .cmdline, .initrd, .uname, .sbat",
        "+ systemd-stub was given, beside the image: printk.devkmsg=on",
        "+ Which command line the kernel got cannot be told.",
        *(f"+ systemd measured '{phase}' into PCR 11." for phase in PHASES),
        f"? systemd measured into PCR 15 what its log does not hold (it says: '{VAULT}",
    ):
        assert line in text


def test_separators_are_told_in_one_sentence_and_repetitions_are_not(tmp_path: Path, capsys: Capture) -> None:
    (path,) = [path for path in VECTORS if path.stem == "debian-sid-systemd-262"]
    recorded = Recorded(path, tmp_path)
    _, text = page(capsys, *recorded.with_log())
    assert "+ systemd measured 'os-separator' into PCR 0-7, 9, 12-14." in text
    twice = FORGERIES["duplicated"](recorded.userspace.split(b"\x1e")[1:])
    _, text = page(capsys, *recorded.with_log(log=b"".join(b"\x1e" + record for record in twice)))
    assert text.count("? systemd measured 'enter-initrd' into PCR 11.") == 2


def test_its_separators_are_no_measurements_of_the_boot(tmp_path: Path, capsys: Capture) -> None:
    """With systemd's log they are told as its own, and without it the boot replays all the same."""
    (path,) = [path for path in VECTORS if path.stem == "debian-sid-systemd-262"]
    recorded = Recorded(path, tmp_path)
    _, alone = explain(capsys, *recorded.write())
    _, joined = explain(capsys, *recorded.with_log())
    assert alone["proof"]["replayed_pcrs"] == [*range(10), 12, 13, 14]
    assert alone["facts"] == joined["facts"]
    for part in ("images", "files", "signers", "command_lines_beside_image", "taken_beside_image"):
        assert alone["details"][part] == joined["details"][part]


def test_a_policy_made_from_it_accepts_it_and_no_other(
    recorded: Recorded, capsys: Capture, tmp_path: Path
) -> None:
    policy, words = str(tmp_path / "policy.toml"), recorded.write()
    assert main(["policy", "init", "--from-log", *words, "--output", policy]) == 0
    assert main(["policy", "check", policy, *words]) == 0
    capsys.readouterr()
    for other in [*OTHERS, *(path.with_suffix(".bin") for path in VECTORS if path != recorded.path)]:
        assert main(["policy", "check", policy, str(other)]) == 1
        foreign = str(tmp_path / f"{other.stem}.toml")
        assert main(["policy", "init", "--from-log", str(other), "--output", foreign]) == 0
        assert main(["policy", "check", foreign, *words]) == 1


def test_a_policy_made_from_it_refuses_any_other_image_add_on_initrd_and_option(
    recorded: Recorded, capsys: Capture, tmp_path: Path
) -> None:
    policy, log = tmp_path / "policy.toml", recorded.path.with_suffix(".bin").read_bytes()
    assert main(["policy", "init", "--from-log", *recorded.write(), "--output", str(policy)]) == 0
    _, found = explain(capsys, *recorded.with_log())
    pinned = [*found["details"]["images"], *found["details"]["files"]]
    assert [one["name"]["value"].rsplit("\\")[-1] for one in pinned] == [
        *("BOOTX64.EFI", "verbose.addon.efi", "LOADED_IMAGE::LoadOptions", "Linux initrd")
    ]
    for one in pinned:
        digest = bytes.fromhex(one["digest"]["value"])
        bent = tmp_path / "bent"
        bent.write_bytes(log.replace(digest, bytes(reversed(digest))))
        assert main(["policy", "check", str(policy), str(bent)]) == 1
        assert bytes(reversed(digest)).hex() in capsys.readouterr().out


def _place(records: list[bytes]) -> int:
    """Where `enter-initrd` stands, the first that was measured into PCR 11."""
    return next(place for place, record in enumerate(records) if b'"enter-initrd"' in record)


def _replaced(records: list[bytes], *by: bytes) -> list[bytes]:
    place = _place(records)
    return [*records[:place], *by, *records[place + 1 :]]


def _lie(records: list[bytes]) -> bytes:
    """A phase that never was, with the digests that it would have."""
    bent = json.loads(records[_place(records)])
    for entry in bent["digests"]:
        entry["digest"] = hashlib.new(entry["hashAlg"], b"enter-exitrd").hexdigest()
    bent["content"]["string"] = "enter-exitrd"
    return json.dumps(bent).encode() + b"\n"


def _text_changed(records: list[bytes]) -> list[bytes]:
    return _replaced(records, records[_place(records)].replace(b"enter-initrd", b"enter-exitrd"))


def _moved(records: list[bytes]) -> list[bytes]:
    return _replaced(records, records[_place(records)].replace(b'"pcr":11', b'"pcr":15'))


FORGERIES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "removed": lambda records: _replaced(records),
    "cut short": lambda records: records[: _place(records) + 1],
    "reordered": lambda records: [*_replaced(records), records[_place(records)]],
    "digest changed": lambda records: _replaced(records, _lie(records)),
    "text changed": _text_changed,
    "moved to another PCR": _moved,
    "appended": lambda records: [*records, _lie(records)],
    "duplicated": lambda records: _replaced(records, *[records[_place(records)]] * 2),
}


@pytest.mark.parametrize("bend", FORGERIES.values(), ids=FORGERIES)
def test_no_bent_log_proves_what_did_not_happen(
    recorded: Recorded, capsys: Capture, bend: Callable[[list[bytes]], list[bytes]]
) -> None:
    """What a bent log still proves is a part of what happened, in its order, PCR by PCR."""
    true = recorded.userspace.split(b"\x1e")[1:]
    bent = b"".join(b"\x1e" + record for record in bend(true))
    assert bent != recorded.userspace
    code, found = explain(capsys, *recorded.with_log(log=bent))
    if code == 1:
        assert "event log" in found["refused"]
        return
    for pcr in (11, 15):
        happened = iter([one.text for one in recorded.records if one.pcr == pcr])
        told = [
            one["text"]["value"]
            for one in found["userspace"]["list"]
            if one["pcr"] == pcr and one["text"]["trust"] == "verified"
        ]
        assert all(text in happened for text in told)  # each after the one before it
    unproven = [one for one in found["userspace"]["list"] if one["text"]["trust"] == "untrusted"]
    assert unproven
    # And PCR 11 proves the image only where all that was measured into it is told.
    whole = 11 in found["userspace"]["reached_pcrs"]
    assert found["details"]["unified_kernel_image"]["trust"] == ("verified" if whole else "untrusted")


def test_a_log_of_another_boot_reaches_nothing(recorded: Recorded, capsys: Capture) -> None:
    """The machine's identity is the same: the boots differ in the volume and its key."""
    other = b"".join(b"\x1e" + record for record in recorded.userspace.split(b"\x1e")[1:])
    other = other.replace(b"machine-id:61666669", b"machine-id:71666669")
    other = _rehash(other)
    _, found = explain(capsys, *recorded.with_log(log=other))
    assert found["userspace"]["unreached_pcrs"] == [15]
    assert not [
        one for one in found["userspace"]["list"] if one["pcr"] == 15 and one["text"]["trust"] == "verified"
    ]


def _rehash(log: bytes) -> bytes:
    """The digests of all texts that can be hashed anew, as a machine that measured them would have them."""
    records = []
    for record in log.split(b"\x1e")[1:]:
        value = json.loads(record)
        text = value["content"]["string"]
        if not text.startswith(VAULT):
            for entry in value["digests"]:
                entry["digest"] = hashlib.new(entry["hashAlg"], text.encode()).hexdigest()
        records.append(b"\x1e" + json.dumps(value).encode() + b"\n")
    return b"".join(records)
