"""`affiant boot explain` with IMA's list and systemd's log: what PCR values contain of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from affiant.cli import main
from affiant.tpm.algorithms import HashAlgorithm
from tests.unit.appraisal.boots import windows_firmware
from tests.unit.boot.test_explain import explain, page, trusts
from tests.unit.tpm.attester import EXTRA, Attester
from tests.unit.tpm.firmware import Firmware
from tests.unit.tpm.ima_kernel import Kernel
from tests.unit.tpm.test_os_separator import close
from tests.unit.tpm.test_uki import stub
from tests.unit.tpm.test_userspace_log import MACHINE, PHASES, RECORDS, record

SHA256 = HashAlgorithm.SHA256
Capture = pytest.CaptureFixture[str]


def boot_aggregate(pcrs: dict[int, bytes]) -> bytes:
    return b"".join(pcrs[pcr] for pcr in range(10))


@dataclass
class Running:
    """A machine that has booted a unified kernel image, with the files that tell of it."""

    folder: Path
    kernel: Kernel = field(default_factory=Kernel)
    records: list[bytes] = field(default_factory=lambda: list(RECORDS))
    firmware: Firmware = field(default_factory=Firmware.healthy)

    def boot(self) -> Running:
        self.firmware.entries += stub().entries
        self.kernel.file("boot_aggregate", boot_aggregate(self.firmware.pcrs()))
        self.kernel.entries += Kernel.busy().entries[1:]
        return self

    def pcrs(self) -> dict[int, bytes]:
        values = self.firmware.pcrs()
        values[10] = self.kernel.pcrs()[10]
        for pcr, octets in [
            *((11, phase.encode()) for phase in PHASES),
            (15, MACHINE.encode()),
            (15, b"derived from the key"),
        ]:
            values[pcr] = SHA256.digest(values[pcr] + SHA256.digest(octets))
        return values

    def write(
        self,
        *,
        selected: list[int] | None = None,
        separated: bool = False,
        in_pcr_9: Iterable[bytes] = (),
    ) -> list[str]:
        """Write all files, and return the words that verify them; `in_pcr_9` was measured after the boot."""
        attester, pcrs = Attester(), self.pcrs()
        for octets in in_pcr_9:
            pcrs[9] = SHA256.digest(pcrs[9] + SHA256.digest(octets))
        if separated:
            pcrs = close(pcrs)
        attest = attester.attest(pcrs, selected=selected)
        for name, content in {
            "log": self.firmware.log(),
            "quote": attest,
            "signature": attester.sign(attest),
            "ak": attester.public,
            "pcrs": json.dumps({"sha256": {str(i): v.hex() for i, v in pcrs.items()}}).encode(),
            "ima": self.kernel.list(),
            "cel": b"".join(self.records),
        }.items():
            (self.folder / name).write_bytes(content)
        words = [self.path("log"), "--nonce", EXTRA.hex()]
        for name in ("quote", "signature", "ak", "pcrs"):
            words += [f"--{name}", self.path(name)]
        return words

    def path(self, name: str) -> str:
        return str(self.folder / name)

    @property
    def later(self) -> list[str]:
        return ["--ima", self.path("ima"), "--cel", self.path("cel")]


@pytest.fixture
def running(tmp_path: Path) -> Running:
    return Running(tmp_path).boot()


def test_a_quote_proves_what_ran_after_the_boot(running: Running, capsys: Capture) -> None:
    words = running.write()
    code, found = explain(capsys, *words, *running.later, "--events")
    assert code == 0
    assert {10, 11, 15} & set(found["proof"]["replayed_pcrs"]) == {11, 15}
    ima = found["ima"]
    assert ima["measured"] == {"value": 5, "trust": "verified"}
    assert ima["violations"] == {"value": [2], "trust": "verified"}
    assert ima["violation_names"] == {"value": ["/usr/bin/open"], "trust": "untrusted"}
    assert ima["boot_aggregate_matches"] == {"value": True, "trust": "verified"}
    assert [one["path"] for one in ima["list"]][-1] == "/usr/bin/cat"
    assert {one["third_field_role"]["trust"] for one in ima["list"]} == {"untrusted"}
    userspace = found["userspace"]
    assert (userspace["reached_pcrs"], userspace["unreached_pcrs"]) == ([11, 15], [])
    assert [one["text"]["trust"] for one in userspace["list"]] == ["verified"] * 5 + ["untrusted"]
    assert {one["digest"]["trust"] for one in userspace["list"]} == {"verified"}
    # PCR 11 can be replayed with systemd's log alone: without it the image is the log's word.
    assert found["details"]["unified_kernel_image"]["trust"] == "verified"
    _, alone = explain(capsys, *words)
    assert 11 in alone["proof"]["unreplayed_pcrs"]
    assert alone["details"]["unified_kernel_image"]["trust"] == "untrusted"
    assert (alone["ima"], alone["userspace"]) == (None, None)


def test_the_boot_aggregate_is_of_the_pcrs_before_systemd_closed_them(
    running: Running, capsys: Capture
) -> None:
    words = running.write(separated=True)
    code, found = explain(capsys, *words, "--ima", running.path("ima"))
    assert code == 0
    assert found["ima"]["boot_aggregate_matches"] == {"value": True, "trust": "verified"}


NV_INDEX = "nvpcr-init:hardware:0x1d10200:sha256"


def test_what_systemd_measures_into_pcr_9_needs_its_log(running: Running, capsys: Capture) -> None:
    """That it made an NV index comes between its separators, and no firmware's log tells of it."""
    words = running.write(in_pcr_9=[b"os-separator", NV_INDEX.encode(), b"nvpcr-separator"])
    code, found = explain(capsys, *words)
    assert (code, found["refused"]) == (1, "event log: does not replay to the quoted value of PCR 9")
    running.records += [record(9, text) for text in ("os-separator", NV_INDEX, "nvpcr-separator")]
    (running.folder / "cel").write_bytes(b"".join(running.records))
    for alone in (words, [words[0], *words[-2:]]):
        code, found = explain(capsys, *alone, *running.later)
        assert (code, found["refused"]) == (0, None)
        assert found["userspace"]["reached_pcrs"] == [9, 11, 15]
        assert 9 in found["proof"]["replayed_pcrs"]
        assert "nvpcr" not in json.dumps(found["details"])
    _, found = explain(capsys, *words, *running.later)
    assert found["ima"]["boot_aggregate_matches"] == {"value": True, "trust": "verified"}
    told = {one["text"]["value"]: one["text"]["trust"] for one in found["userspace"]["list"]}
    assert told[NV_INDEX] == "verified"


def test_a_log_of_systemd_cannot_explain_away_a_file(running: Running, capsys: Capture) -> None:
    """What it calls its own is told by what it measured: a file that was read stays one."""
    words = running.write(in_pcr_9=[b"another kernel"])
    for text, measured in (("nvpcr-init:kernel", b"another kernel"), ("another kernel", b"another kernel")):
        (running.folder / "cel").write_bytes(b"".join([*running.records, record(9, text, measured=measured)]))
        code, found = explain(capsys, *words, "--cel", running.path("cel"))
        assert code == 0
        digests = [one["digest"]["value"] for one in found["details"]["files"]]
        assert digests[-1] == SHA256.digest(b"another kernel").hex()


def test_the_story_goes_on_after_the_boot(running: Running, capsys: Capture) -> None:
    code, text = page(capsys, *running.write(), *running.later)
    assert code == 0
    for line in (
        "+ systemd measured 'enter-initrd' into PCR 11.",
        "+ The kernel measured 5 files and buffers (IMA, PCR 10).",
        "+ Of 1 files IMA could not know what was read (violations).",
        "? They are said to be, among others: /usr/bin/open.",
        "+ IMA's boot aggregate is of this boot.",
        "? systemd measured into PCR 15 what its log does not hold (it says: 'cryptsetup:root:uuid').",
    ):
        assert f"  {line}\n" in text


def test_without_a_quote_all_of_it_is_untrusted(running: Running, capsys: Capture) -> None:
    running.write()
    code, found = explain(capsys, running.path("log"), *running.later, "--events")
    assert code == 0
    assert trusts(found) == {"untrusted"}
    assert found["ima"]["measured"]["value"] == 5
    assert "no quote of PCR 10" in found["ima"]["unproven"]
    assert found["userspace"]["reached_pcrs"] == []
    assert "\n  + " not in page(capsys, running.path("log"), *running.later)[1]


def test_values_that_nobody_signed_prove_nothing_of_it(running: Running, capsys: Capture) -> None:
    running.write()
    words = [running.path("log"), "--pcrs", running.path("pcrs"), *running.later]
    code, found = explain(capsys, *words)
    assert code == 0
    assert trusts(found) == {"untrusted"}
    assert found["ima"]["rests_on"] == "unsigned PCR values"
    assert found["userspace"]["reached_pcrs"] == [11, 15]
    assert {11, 15} <= set(found["proof"]["replayed_pcrs"])
    running.kernel.entries.pop(1)
    (running.folder / "ima").write_bytes(running.kernel.list())
    code, found = explain(capsys, *words)
    assert code == 1
    assert "value shown of PCR 10" in found["refused"]


@pytest.mark.parametrize("change", ["removed", "reordered", "content", "violation"])
def test_a_bent_list_is_refused_and_proves_nothing(running: Running, capsys: Capture, change: str) -> None:
    words = running.write()
    entries = running.kernel.entries
    if change == "removed":
        entries.pop(1)
    elif change == "reordered":
        entries[0], entries[1] = entries[1], entries[0]
    elif change == "content":
        entries[4].data = entries[4].data.replace(b"/usr/bin/cat", b"/usr/bin/dog")
    else:
        entries[2].violation = False
    (running.folder / "ima").write_bytes(running.kernel.list())
    code, found = explain(capsys, *words, *running.later, "--events")
    assert code == 1
    assert "PCR 10" in found["refused"]
    assert trusts(found) == {"untrusted"}
    code, text = page(capsys, *words, *running.later)
    assert code == 1
    assert "\n  + " not in text


def test_what_is_measured_after_the_quote_is_told_apart(running: Running, capsys: Capture) -> None:
    words = running.write()
    running.kernel.file("/usr/bin/later", b"later")
    running.records.append(record(11, "shutdown"))
    (running.folder / "ima").write_bytes(running.kernel.list())
    (running.folder / "cel").write_bytes(b"".join(running.records))
    code, found = explain(capsys, *words, *running.later, "--events")
    assert code == 0
    assert found["ima"]["not_yet_quoted"] == 1
    assert "/usr/bin/later" not in {one["path"] for one in found["ima"]["list"]}
    last = found["userspace"]["list"][-1]
    assert (last["text"], last["digest"]["trust"]) == (
        {"value": "shutdown", "trust": "untrusted"},
        "untrusted",
    )
    assert found["details"]["unified_kernel_image"]["trust"] == "verified"


def test_an_aggregate_of_other_pcrs_is_told(running: Running, capsys: Capture) -> None:
    """An older list carried over: it replays, and its first entry is of another boot."""
    running.kernel.entries[0] = Kernel.busy().entries[0]
    _, found = explain(capsys, *running.write(), *running.later)
    assert found["ima"]["boot_aggregate_matches"] == {"value": False, "trust": "verified"}


@pytest.mark.parametrize(
    "bend",
    [
        lambda records: records[1:],
        lambda records: [records[1], records[0], *records[2:]],
        lambda records: [record(11, "enter-initrd", measured=b"other"), *records[1:]],
    ],
    ids=["removed", "reordered", "digest changed"],
)
def test_bent_records_prove_nothing_of_their_pcr(running: Running, capsys: Capture, bend: Any) -> None:
    running.records = bend(running.records)
    code, found = explain(capsys, *running.write(), *running.later)
    assert code == 0
    assert found["userspace"]["unreached_pcrs"] == [11]
    for one in found["userspace"]["list"]:
        assert one["digest"]["trust"] == ("verified" if one["pcr"] == 15 else "untrusted")
    assert found["details"]["unified_kernel_image"]["trust"] == "untrusted"


def test_a_changed_text_is_not_bound(running: Running, capsys: Capture) -> None:
    running.records[0] = running.records[0].replace(b"enter-initrd", b"enter-ihitrd")
    _, found = explain(capsys, *running.write(), *running.later)
    first = found["userspace"]["list"][0]
    assert (first["digest"]["trust"], first["text"]["trust"]) == ("verified", "untrusted")


def test_invented_records_of_the_firmware_s_pcrs_are_refused(running: Running, capsys: Capture) -> None:
    """PCR 7 is quoted without them, and what comes after them is in the quote."""
    running.records.insert(0, record(7, "SecureBoot"))
    code, found = explain(capsys, *running.write(), *running.later)
    assert code == 1
    assert "PCR 7" in found["refused"]
    assert trusts(found) == {"untrusted"}


def test_a_quote_without_pcr_10_proves_no_list(running: Running, capsys: Capture) -> None:
    words = running.write(selected=[*range(10), 11, 14])
    code, found = explain(capsys, *words, *running.later)
    assert code == 0
    assert trusts(found["ima"]) == {"untrusted"}
    assert "does not select PCR 10" in found["ima"]["unproven"]
    assert found["userspace"]["reached_pcrs"] == [11]


def test_systemd_s_log_needs_no_values(running: Running, capsys: Capture) -> None:
    words = running.write(selected=[*range(10), 11, 14, 15])[:-2]
    code, found = explain(capsys, *words, "--cel", running.path("cel"))
    assert code == 0
    assert found["userspace"]["reached_pcrs"] == [11, 15]


def test_a_growing_list_needs_the_values_that_were_quoted(running: Running, capsys: Capture) -> None:
    words = running.write()[:-2]
    assert main(["boot", "explain", *words, "--ima", running.path("ima")]) == 2
    assert "--pcrs" in capsys.readouterr().err


def test_a_list_with_stronger_digests_is_read(running: Running, capsys: Capture) -> None:
    words = running.write()
    (running.folder / "ima").write_bytes(running.kernel.list(SHA256))
    code, found = explain(capsys, *words, *running.later)
    assert code == 0
    assert found["ima"]["measured"] == {"value": 5, "trust": "verified"}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [("ima", b"\x0a\0\0\0junk", "IMA list"), ("cel", b"{}", "userspace log")],
)
def test_unusable_files_are_told_in_one_line(
    running: Running, capsys: Capture, name: str, content: bytes, reason: str
) -> None:
    words = running.write()
    (running.folder / name).write_bytes(content)
    assert main(["boot", "explain", *words, *running.later]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {reason}")
    assert error.count("\n") == 1


def test_windows_has_neither(running: Running, capsys: Capture) -> None:
    running.write()
    (running.folder / "log").write_bytes(windows_firmware().log())
    assert main(["boot", "explain", running.path("log"), *running.later]) == 2
    assert "Windows" in capsys.readouterr().err


def test_nothing_in_them_moves_the_reader_s_cursor(running: Running, capsys: Capture) -> None:
    running.kernel.file("/tmp/\x1b[2J\n  + proven", b"x", violation=True)
    running.records.append(record(11, "\x1b[2J\r\n  + proven"))
    running.write()
    _, text = page(capsys, running.path("log"), *running.later)
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "\n  + " not in text
