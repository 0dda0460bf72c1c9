"""`affiant boot explain`: what is proven, what is only said, and every way to lie about it."""

from __future__ import annotations

import base64
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from affiant.cli import main
from tests.samples import bundle, samples_folder
from tests.unit.appraisal.boots import windows_firmware
from tests.unit.tpm.attester import EXTRA, Attester, ecc_public
from tests.unit.tpm.firmware import Firmware
from tests.unit.tpm.test_evidence_samples import recovered_key
from tests.unit.tpm.test_os_separator import close

Capture = pytest.CaptureFixture[str]


@dataclass
class Files:
    """The files of one machine's evidence, truthful until one is overwritten."""

    folder: Path
    firmware: Firmware

    def write(self, *, separated: bool = False, separators: int | None = None) -> Files:
        """`separated`: systemd has measured its separators since, so many of each PCR (None: all)."""
        attester, pcrs = Attester(), self.firmware.pcrs()
        if separated:
            pcrs = close(pcrs, last=separators)
        attest = attester.attest(pcrs)
        for name, content in {
            "log": self.firmware.log(),
            "quote": attest,
            "signature": attester.sign(attest),
            "ak": attester.public,
            "pcrs": json.dumps({"sha256": {str(i): v.hex() for i, v in pcrs.items()}}).encode(),
        }.items():
            (self.folder / name).write_bytes(content)
        return self

    def path(self, name: str) -> str:
        return str(self.folder / name)

    @property
    def quoted(self) -> list[str]:
        words = [self.path("log"), "--nonce", EXTRA.hex()]
        for option, name in {"--quote": "quote", "--signature": "signature", "--ak": "ak"}.items():
            words += [option, self.path(name)]
        return words


@pytest.fixture
def linux(tmp_path: Path) -> Files:
    return Files(tmp_path, Firmware.healthy()).write()


@pytest.fixture
def windows(tmp_path: Path) -> Files:
    return Files(tmp_path, windows_firmware()).write()


def explain(capsys: Capture, *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["boot", "explain", "--json", *words])
    return code, json.loads(capsys.readouterr().out)


def page(capsys: Capture, *words: str) -> tuple[int, str]:
    code = main(["boot", "explain", *words])
    return code, capsys.readouterr().out


def trusts(document: object) -> set[str]:
    """Every trust label in a document, however deep."""
    if isinstance(document, dict):
        own = {document["trust"]} if isinstance(document.get("trust"), str) else set()
        return own.union(*map(trusts, document.values()))
    return set().union(*map(trusts, document)) if isinstance(document, list) else set()


def test_without_a_quote_every_field_is_untrusted(linux: Files, capsys: Capture) -> None:
    code, found = explain(capsys, linux.path("log"), "--events")
    assert code == 0
    assert trusts(found) == {"untrusted"}
    assert found["facts"]["secure_boot_enabled"]["value"] is True
    assert found["facts"]["vbs_enabled"]["value"] is None
    assert found["level"]["number"] == 0
    assert found["proof"]["rests_on"] == "nothing"
    assert len(found["events"]) == found["log"]["events"]


def test_values_that_nobody_signed_prove_nothing(linux: Files, capsys: Capture) -> None:
    code, found = explain(capsys, linux.path("log"), "--pcrs", linux.path("pcrs"))
    assert code == 0
    assert trusts(found) == {"untrusted"}
    assert found["proof"]["rests_on"] == "unsigned PCR values"
    assert set(range(10)) <= set(found["proof"]["replayed_pcrs"])


def test_values_of_another_boot_are_refused(linux: Files, capsys: Capture) -> None:
    other = Firmware.healthy()
    other.file("/vmlinuz", b"another")
    values = {str(pcr): value.hex() for pcr, value in other.pcrs().items()}
    (linux.folder / "pcrs").write_text(json.dumps({"sha256": values}))
    code, found = explain(capsys, linux.path("log"), "--pcrs", linux.path("pcrs"))
    assert code == 1
    assert "PCR 9" in found["refused"]


def test_a_quote_proves_what_its_log_binds(linux: Files, capsys: Capture) -> None:
    code, found = explain(capsys, *linux.quoted, "--events")
    assert code == 0
    assert found["facts"]["secure_boot_enabled"] == {
        "value": True,
        "trust": "verified",
        "source": "PCR 7: SecureBoot",
    }
    assert found["facts"]["vbs_enabled"]["trust"] == "untrusted"
    assert found["level"]["number"] == 1
    assert "attestation_key_enrolled" in found["level"]["assumed"]
    assert {"kernel_known"} <= {reason["claim"] for reason in found["level"]["reasons"]}
    assert found["details"]["images"][0]["digest"]["trust"] == "verified"
    assert found["details"]["images"][0]["name"]["trust"] == "untrusted"
    assert {event["type"]["trust"] for event in found["events"]} == {"untrusted"}
    bound = [event for event in found["events"] if event["data"]["trust"] == "verified"]
    unbound = [event for event in found["events"] if event["data"]["trust"] == "untrusted"]
    assert bound
    assert {event["data"]["covered"] for event in unbound} == {"nothing in the log", "never measured"}


def test_the_values_may_be_left_to_the_log(linux: Files, capsys: Capture) -> None:
    """The signed digest decides, whether the values come from a file or from the log itself."""
    with_values = explain(capsys, *linux.quoted, "--pcrs", linux.path("pcrs"))
    assert with_values == explain(capsys, *linux.quoted)


def test_a_boot_that_systemd_has_closed_is_the_same_boot(linux: Files, capsys: Capture) -> None:
    """With the values or without them: the log leads to its end, and systemd's separator from there."""
    _, before = explain(capsys, *linux.quoted)
    for separators, words in itertools.product((1, None), (["--pcrs", linux.path("pcrs")], [])):
        linux.write(separated=True, separators=separators)
        code, found = explain(capsys, *linux.quoted, *words)
        assert code == 0
        for part in ("facts", "details", "level"):
            assert found[part] == before[part]
        assert found["proof"]["replayed_pcrs"] == before["proof"]["replayed_pcrs"]
    code, found = explain(capsys, linux.path("log"), "--pcrs", linux.path("pcrs"))
    assert (code, found["refused"]) == (0, None)


def test_a_windows_machine_is_explained_to_level_four(windows: Files, capsys: Capture) -> None:
    code, found = explain(capsys, *windows.quoted)
    assert code == 0
    assert found["system"] == "windows"
    for name in ("vbs_enabled", "hvci_enabled", "test_signing_disabled", "kernel_debugging_disabled"):
        assert (found["facts"][name]["value"], found["facts"][name]["trust"]) == (True, "verified")
    assert found["level"]["number"] == 4
    assert {reason["level"] for reason in found["level"]["reasons"]} == {5}
    assert found["details"]["windows"]["vsm_signing_key"]["trust"] == "verified"
    _, text = page(capsys, *windows.quoted)
    assert "+ The hypervisor let the kernel run signed code only (HVCI)." in text
    assert "LEVEL 4, enforced code" in text


def lie_nonce(files: Files) -> list[str]:
    words = files.quoted
    words[words.index("--nonce") + 1] = "00" * 32
    return words


def lie_signature(files: Files) -> list[str]:
    signature = bytearray((files.folder / "signature").read_bytes())
    signature[-1] ^= 1
    (files.folder / "signature").write_bytes(signature)
    return files.quoted


def lie_key(files: Files) -> list[str]:
    (files.folder / "ak").write_bytes(Attester().public)
    return files.quoted


def lie_log_of_another_boot(files: Files) -> list[str]:
    other = Firmware.healthy()
    other.file("/vmlinuz", b"a rootkit's kernel")
    (files.folder / "log").write_bytes(other.log())
    return [*files.quoted, "--pcrs", files.path("pcrs")]


def lie_values(files: Files) -> list[str]:
    other = Firmware.healthy()
    other.file("/vmlinuz", b"a rootkit's kernel")
    (files.folder / "log").write_bytes(other.log())
    return files.quoted


LIES = {
    "a replayed quote": (lie_nonce, "extraData"),
    "a bent signature": (lie_signature, "signature"),
    "another key": (lie_key, "signature"),
    "the log of another boot": (lie_log_of_another_boot, "PCR 9"),
    "values of another boot": (lie_values, "PCR values"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_by_name_and_proves_nothing(linux: Files, capsys: Capture, lie: str) -> None:
    bend, reason = LIES[lie]
    words = bend(linux)
    code, found = explain(capsys, *words)
    assert code == 1
    assert reason in found["refused"]
    assert trusts(found) == {"untrusted"}
    assert found["level"]["number"] == 0
    code, text = page(capsys, *words)
    assert code == 1
    assert "REFUSED" in text
    assert "\n  + " not in text


def test_a_log_that_contradicts_itself_is_refused_outright(linux: Files, capsys: Capture) -> None:
    firmware = Firmware.healthy()
    firmware.edit(firmware.find("SecureBoot".encode("utf-16-le")), data=b"SecureBoot: certainly")
    (linux.folder / "log").write_bytes(firmware.log())
    code, found = explain(capsys, linux.path("log"))
    assert code == 1
    assert list(found) == ["refused"]
    assert page(capsys, linux.path("log"))[0] == 1


def test_an_empty_nonce_is_told_and_gives_no_level(linux: Files, capsys: Capture) -> None:
    attester, pcrs = Attester(), linux.firmware.pcrs()
    attest = attester.attest(pcrs, extra_data=b"")
    (linux.folder / "quote").write_bytes(attest)
    (linux.folder / "signature").write_bytes(attester.sign(attest))
    (linux.folder / "ak").write_bytes(attester.public)
    words = linux.quoted
    words[words.index("--nonce") + 1] = ""
    code, found = explain(capsys, *words)
    assert code == 0
    assert found["facts"]["secure_boot_enabled"]["trust"] == "verified"
    assert found["level"]["number"] == 0
    assert found["level"]["reasons"][0]["claim"] == "quote_fresh"


@pytest.mark.parametrize("missing", ["--signature", "--ak", "--nonce"])
def test_half_a_quote_proves_nothing_and_is_told(linux: Files, capsys: Capture, missing: str) -> None:
    words = linux.quoted
    position = words.index(missing)
    code, found = explain(capsys, *words[:position], *words[position + 2 :])
    assert code == 0
    assert trusts(found) == {"untrusted"}
    assert "without" in found["proof"]["unused"]


def test_a_bundle_holds_the_same_evidence(linux: Files, capsys: Capture) -> None:
    def text(name: str) -> str:
        return base64.b64encode((linux.folder / name).read_bytes()).decode()

    (linux.folder / "bundle.json").write_text(
        json.dumps(
            {
                "event_logs": [text("log")],
                "pcrs": json.loads((linux.folder / "pcrs").read_text()),
                "quote": text("quote"),
                "signature": text("signature"),
                "attestation_key": text("ak"),
            }
        )
    )
    whole = explain(capsys, linux.path("bundle.json"), "--nonce", EXTRA.hex())
    assert whole == explain(capsys, *linux.quoted)
    # A bundle's own nonce is never used: what it answers is for the verifier to say.
    _, alone = explain(capsys, linux.path("bundle.json"))
    assert trusts(alone) == {"untrusted"}


@pytest.mark.parametrize("form", ["yaml", "sysfs", "prefixed"])
def test_values_come_in_other_forms(linux: Files, capsys: Capture, form: str) -> None:
    lines = []
    for pcr, value in linux.firmware.pcrs().items():
        line = {"yaml": f"    {pcr:<3}: 0x{value.hex()}", "prefixed": f"sha256:{pcr}={value.hex()}"}
        lines.append(line.get(form, f"PCR-{pcr:02}: {value.hex(' ').upper()}"))
    head = "---\nevents:\n- 0: junk\npcrs:\n  sha256:\n" if form == "yaml" else ""
    (linux.folder / "pcrs").write_text(head + "\n".join(lines) + "\n")
    code, found = explain(capsys, linux.path("log"), "--pcrs", linux.path("pcrs"))
    assert code == 0
    assert len(found["proof"]["replayed_pcrs"]) == 24


UNUSABLE = {
    "no log": ("log", b"not a log"),
    "an empty log": ("log", b""),
    "JSON that is no bundle": ("log", b'{"a": 1}'),
    "a bundle whose PCRs are no list": ("log", b'{"Log": {"PCRs": true}}'),
    "JSON that ends early": ("log", b'{"event_logs"'),
    "values that are none": ("pcrs", b"nothing here"),
    "values of wrong length": ("pcrs", b'{"sha256": {"0": "00"}}'),
    "a PCR that does not exist": ("pcrs", b'{"sha256": {"24": "' + b"00" * 32 + b'"}}'),
    "a PCR twice": ("pcrs", b"0: " + b"00" * 32 + b"\n0: " + b"11" * 32),
    "a key that is PEM": ("ak", b"-----BEGIN PUBLIC KEY-----\n"),
    "a key that is none": ("ak", b"junk"),
    "a quote that is none": ("quote", b"junk"),
    "a signature that is none": ("signature", b"junk"),
}


@pytest.mark.parametrize(("name", "content"), UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_input_is_told(linux: Files, capsys: Capture, name: str, content: bytes) -> None:
    (linux.folder / name).write_bytes(content)
    assert main(["boot", "explain", *linux.quoted, "--pcrs", linux.path("pcrs")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_file_that_is_not_there_is_told(tmp_path: Path, capsys: Capture) -> None:
    assert main(["boot", "explain", str(tmp_path / "none")]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_nothing_in_a_log_moves_the_reader_s_cursor(linux: Files, capsys: Capture) -> None:
    firmware = Firmware.healthy()
    firmware.command("echo \x1b[2J\r+ Secure Boot was on.\n  + proven")
    firmware.file("/boot/\x1b[31mvmlinuz\n  + proven", b"x")
    (linux.folder / "log").write_bytes(firmware.log())
    _, text = page(capsys, linux.path("log"), "--events")
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "\n  + " not in text


# The samples: what their sources state


def windows_sample(name: str, tmp_path: Path) -> list[str]:
    """The words that verify a sample: its own quote, and the key recovered from it."""
    folder = samples_folder()
    source = bundle(f"windows/{name}.bundle.json")
    key = tmp_path / "ak"
    public = recovered_key(source).key
    key.write_bytes(ecc_public(public))  # type: ignore[arg-type]  # the recovered keys are ECC
    nonce = source["quote_fields"]["extra_data"]
    return [f"{folder}/windows/{name}.bundle.json", "--ak", str(key), "--nonce", nonce]


def test_a_laptop_with_vbs_and_no_secure_boot(tmp_path: Path, capsys: Capture) -> None:
    code, found = explain(capsys, *windows_sample("win10_latitude7520_vbs_hvci", tmp_path))
    assert code == 0
    facts = {name: fact["value"] for name, fact in found["facts"].items() if fact["trust"] == "verified"}
    assert facts["secure_boot_enabled"] is False
    for name in ("vbs_enabled", "hvci_enabled", "test_signing_disabled", "boot_counter_matches"):
        assert facts[name] is True
    assert found["level"]["number"] == 1
    assert "secure_boot_enabled" in {reason["claim"] for reason in found["level"]["reasons"]}
    assert found["details"]["windows"]["boot_counter"] == {"value": 187, "trust": "verified"}


def test_the_same_laptop_without_vbs(tmp_path: Path, capsys: Capture) -> None:
    _, found = explain(capsys, *windows_sample("win10_latitude7520_novbs_eset", tmp_path))
    assert found["facts"]["vbs_enabled"]["value"] is False
    assert found["facts"]["vbs_enabled"]["trust"] == "verified"
    assert found["details"]["windows"]["elam_drivers"]["value"] == ["\\WINDOWS\\system32\\DRIVERS\\eelam.sys"]


def test_a_server_with_a_capped_bank(tmp_path: Path, capsys: Capture) -> None:
    """The quote covers two banks; Windows measured into one, and that one is replayed."""
    code, found = explain(capsys, *windows_sample("server2022_supermicro_trustpoint", tmp_path))
    assert code == 0
    assert found["log"]["bank"] == "sha256"
    assert found["facts"]["secure_boot_enabled"]["value"] is None
    assert found["proof"]["rests_on"] == "quote"


def test_sha1_proves_nothing_unless_somebody_insists(capsys: Capture) -> None:
    bundle("windows/go-attestation_windows_gcp_shielded_vm.json")  # skips where it is absent
    words = [f"{samples_folder()}/windows/go-attestation_windows_gcp_shielded_vm.json", "--nonce", ""]
    code, found = explain(capsys, *words)
    assert code == 1
    assert "sha1" in found["refused"]
    assert trusts(found) == {"untrusted"}
    code, found = explain(capsys, *words, "--unsafe-accept-sha1")
    assert code == 0
    assert found["facts"]["secure_boot_enabled"] == {
        "value": True,
        "trust": "verified",
        "source": "PCR 7: SecureBoot",
    }
    assert found["facts"]["boot_manager_by_microsoft"]["value"] is True


@pytest.mark.parametrize(
    ("name", "secure_boot"),
    [("rhel8-uefi.bin", True), ("ubuntu-2404-amd-sevsnp.bin", False), ("debian-10.bin", True)],
)
def test_linux_samples_tell_their_secure_boot(capsys: Capture, name: str, secure_boot: bool) -> None:
    bundle(f"linux/{name}.pcrs.json")
    path = f"{samples_folder()}/linux/{name}"
    code, found = explain(capsys, path, "--pcrs", f"{path}.pcrs.json")
    assert code == 0
    assert found["facts"]["secure_boot_enabled"]["value"] is secure_boot
    assert trusts(found) == {"untrusted"}


def test_a_systemd_boot_sample_replays_onto_the_values_of_tpm2_tools(capsys: Capture) -> None:
    folder = samples_folder()
    if folder is None:
        pytest.skip("evidence samples are absent")
    path = f"{folder}/linux/tpm2-tools_event-sd-boot-fedora37.bin"
    code, found = explain(capsys, path, "--pcrs", f"{path}.yaml")
    assert code == 0
    assert 12 in found["proof"]["replayed_pcrs"]
    assert found["details"]["command_lines"]["value"]


def test_a_page_of_linux_does_not_list_what_only_windows_measures(linux: Files, capsys: Capture) -> None:
    """Whoever asks for JSON gets every name, known or not."""
    _, told = page(capsys, linux.path("log"))
    facts = explain(capsys, linux.path("log"))[1]["facts"]
    only = [name for name, fact in facts.items() if fact["source"] == "only Windows measures this"]
    assert f"  and {len(only)} that only Windows measures (--json shows them)" in told.splitlines()
    assert "vbs_enabled" in only
    assert not any(name in told for name in only)


def test_a_key_in_another_form_is_told_which_one_is_meant(linux: Files, capsys: Capture) -> None:
    words = linux.quoted
    words[words.index("--ak") + 1] = linux.path("signature")
    assert main(["boot", "explain", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: attestation key: ")
    assert "hint: --ak takes a TPM2B_PUBLIC, as tpm2_readpublic -o writes it" in said
