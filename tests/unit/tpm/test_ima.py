"""IMA's measurement list: what PCR 10 proves, and each lie that a list can tell."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.model.errors import EvidenceError, ForgedError, MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.ima import (
    VerifiedImaList,
    expected_boot_aggregate,
    parse_ima_list,
    replay_ima_list,
)
from affiant.tpm.ima_template import accept_files
from tests.unit.tpm.attester import Attester
from tests.unit.tpm.ima_kernel import Kernel, Measured, digest_field, fields

SHA1, SHA256, SHA384 = HashAlgorithm.SHA1, HashAlgorithm.SHA256, HashAlgorithm.SHA384
ATTESTER = Attester()
VECTORS = sorted((Path(__file__).parents[2] / "vectors" / "ima").glob("*.json"))


def verify(kernel: Kernel, octets: bytes | None = None, bank: HashAlgorithm = SHA256) -> VerifiedImaList:
    quote = ATTESTER.quote(kernel.pcrs(bank), bank=bank)
    return replay_ima_list(parse_ima_list(kernel.list() if octets is None else octets), quote)


# A recorded list


def vector(path: Path) -> tuple[dict[str, Any], bytes]:
    return json.loads(path.read_text()), path.with_suffix(".bin").read_bytes()


def vector_pcrs(value: dict[str, Any], bank: HashAlgorithm) -> dict[int, bytes]:
    return {int(pcr): bytes.fromhex(text) for pcr, text in value["pcrs"][bank.title].items()}


def test_there_are_vectors() -> None:
    assert VECTORS


@pytest.mark.parametrize("bank", [SHA1, SHA256], ids=lambda bank: bank.title)
@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_a_recorded_list_tells_what_the_kernel_told(path: Path, bank: HashAlgorithm) -> None:
    value, octets = vector(path)
    expected = value["expected"]
    quote = ATTESTER.quote(vector_pcrs(value, bank), bank=bank)
    verified = replay_ima_list(parse_ima_list(octets), quote)
    assert verified.count == expected["entries"]
    assert sorted(verified.violations) == expected["violations"]
    assert (verified.unread, verified.not_yet_quoted) == (frozenset(), 0)
    assert verified.extended_with is bank
    proven = [one for place, one in enumerate(expected["list"]) if place not in expected["violations"]]
    told = list(verified.measurements())
    assert [(one.path, f"{one.algorithm}:{one.digest.hex()}") for one in told] == [
        (one["path"], one["digest"]) for one in proven
    ]
    roles = {"ima-ng": "", "ima-sig": "signature", "ima-buf": "buffer"}
    assert [one.untrusted_role for one in told] == [roles[one["template"]] for one in proven]
    assert verified.violation_names() == tuple(expected["list"][i]["path"] for i in expected["violations"])


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_a_recorded_list_belongs_to_its_boot(path: Path) -> None:
    value, octets = vector(path)
    quote = ATTESTER.quote(vector_pcrs(value, SHA256))
    verified = replay_ima_list(parse_ima_list(octets), quote)
    assert verified.boot_aggregates() == (("sha256", expected_boot_aggregate(quote.pcrs, bank=quote.bank)),)


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_no_octet_of_a_recorded_measurement_may_change(path: Path) -> None:
    """Whatever octet is bent, the list is refused, or says the same of everything that is proven."""
    value, octets = vector(path)
    quote = ATTESTER.quote(vector_pcrs(value, SHA256))
    honest = list(replay_ima_list(parse_ima_list(octets), quote).measurements())
    for place in range(len(octets)):
        bent = octets[:place] + bytes([octets[place] ^ 1]) + octets[place + 1 :]
        with contextlib.suppress(EvidenceError):
            told = list(replay_ima_list(parse_ima_list(bent), quote).measurements())
            same = {(one.algorithm, one.digest, one.path, one.third) for one in honest}
            assert {(one.algorithm, one.digest, one.path, one.third) for one in told} <= same


# What a truthful kernel measures


def test_a_short_entry_after_a_long_name_is_read() -> None:
    """The last entry may be shorter than a head with the name before it."""
    kernel = Kernel.busy()
    kernel.entries.append(Measured(b"d-ng|n-ng|" + b"x" * 200, fields(digest_field(b"a"), b"/a\0")))
    kernel.file("/b", b"b")
    verified = verify(kernel)
    assert (verified.count, sorted(verified.unread)) == (7, [5])
    assert [one.path for one in verified.measurements()][-1] == "/b"


@pytest.mark.parametrize("pcr", [10, 11])
def test_a_long_list_with_another_pcr_between_is_proven_up_to_its_quoted_entry(pcr: int) -> None:
    """Whatever part of it the register holds, and whichever entries are not for it."""
    kernel = Kernel()
    for number in range(300):
        kernel.file(f"/{number}", str(number).encode())
        kernel.entries.append(Measured(b"ima-ng", fields(digest_field(b"other"), b"/other\0"), pcr=11))
    for quoted in (1, 127, 128, 129, 256, 300):
        mine = [entry for entry in kernel.entries if entry.pcr == pcr][:quoted]
        value = Kernel(mine).pcrs()[pcr]
        quote = ATTESTER.quote({10: bytes(32), 11: bytes(32)} | {pcr: value})
        verified = replay_ima_list(parse_ima_list(kernel.list()), quote, pcr=pcr)
        assert (verified.count, verified.not_yet_quoted) == (quoted, 600 - 2 * quoted + (pcr == 10))


@pytest.mark.parametrize("bank", [SHA1, SHA256, SHA384])
def test_every_template_is_read(bank: HashAlgorithm) -> None:
    verified = verify(Kernel.busy(), bank=bank)
    told = list(verified.measurements())
    assert [one.path for one in told] == ["boot_aggregate", "/usr/bin/bash", "kexec-cmdline", "/usr/bin/cat"]
    assert [one.place for one in told] == [0, 1, 3, 4]
    assert told[1].third == b"\x03\x02signature"
    assert (told[2].third, told[2].untrusted_role) == (b"root=/dev/vda", "buffer")
    assert told[3].digest == SHA256.digest(b"cat")
    assert (told[3].algorithm, told[3].third) == ("sha256", None)
    assert verified.violations == {2}
    assert verified.violation_names() == ("/usr/bin/open",)


def test_the_first_template_is_read() -> None:
    kernel = Kernel()
    kernel.legacy_file("boot_aggregate", b"PCRs")
    kernel.legacy_file("/bin/sh", b"sh")
    kernel.file("/bin/ls", b"ls")
    told = list(verify(kernel).measurements())
    assert [(one.path, one.algorithm) for one in told] == [
        ("boot_aggregate", "sha1"),
        ("/bin/sh", "sha1"),
        ("/bin/ls", "sha256"),
    ]
    assert told[1].digest == SHA1.digest(b"sh")


def test_digests_of_fs_verity_are_told_apart() -> None:
    kernel = Kernel()
    for prefix in (b"ima:sha256:\0", b"verity:sha256:\0"):
        data = fields(prefix + SHA256.digest(b"x"), b"/x\0", b"")
        kernel.entries.append(Measured(b"ima-sigv2", data))
    assert [one.algorithm for one in verify(kernel).measurements()] == ["sha256", "verity:sha256"]


def test_lists_with_newer_template_digests_are_read() -> None:
    """Linux also offers the list with template digests of another bank."""
    kernel = Kernel.busy()
    quote = ATTESTER.quote(kernel.pcrs())
    verified = replay_ima_list(parse_ima_list(kernel.list(SHA256), algorithm=SHA256), quote)
    assert (verified.count, verified.violations) == (5, {2})


def test_a_quote_taken_while_the_list_grew_proves_its_beginning() -> None:
    kernel = Kernel.busy()
    quote = ATTESTER.quote(kernel.pcrs())
    kernel.file("/usr/bin/late", b"late")
    verified = replay_ima_list(parse_ima_list(kernel.list()), quote)
    assert (verified.count, verified.not_yet_quoted) == (5, 1)
    assert "/usr/bin/late" not in [one.path for one in verified.measurements()]


def test_a_kernel_that_measured_nothing_yet() -> None:
    verified = replay_ima_list(parse_ima_list(Kernel.busy().list()), ATTESTER.quote({10: bytes(32)}))
    assert (verified.count, verified.not_yet_quoted, list(verified.measurements())) == (0, 5, [])


def test_an_unknown_template_is_measured_but_not_read() -> None:
    kernel = Kernel.busy()
    kernel.entries.append(Measured(b"ima-new", b"what nobody knows"))
    verified = verify(kernel)
    assert (verified.count, verified.unread) == (6, {5})
    assert len(list(verified.measurements())) == 4


def test_entries_for_other_pcrs_are_left_out() -> None:
    kernel = Kernel.busy()
    kernel.file("/elsewhere", b"x", pcr=11)
    kernel.file("/usr/bin/last", b"last")
    verified = verify(kernel)
    assert verified.count == 6
    assert "/elsewhere" not in [one.path for one in verified.measurements()]


def test_old_kernels_pad_their_sha1_digest() -> None:
    """The result says that SHA-1 is all that proves it."""
    kernel = Kernel.busy()
    quote = ATTESTER.quote(kernel.pcrs(padded=True))
    verified = replay_ima_list(parse_ima_list(kernel.list()), quote)
    assert verified.extended_with is SHA1
    assert len(list(verified.measurements())) == 4
    kernel.entries[1].data = kernel.entries[1].data.replace(b"bash", b"bush")
    with pytest.raises(ForgedError, match="PCR 10"):
        replay_ima_list(parse_ima_list(kernel.list()), quote)


# Lies


def bend_digest(kernel: Kernel) -> None:
    kernel.entries[4].data = kernel.entries[4].data.replace(SHA256.digest(b"cat"), SHA256.digest(b"cut"))


BENDS: dict[str, Callable[[Kernel], object]] = {
    "removed": lambda kernel: kernel.entries.pop(1),
    "reordered": lambda kernel: kernel.entries.insert(0, kernel.entries.pop(1)),
    "duplicated": lambda kernel: kernel.entries.insert(1, kernel.entries[1]),
    "another digest": bend_digest,
    "moved to another PCR": lambda kernel: setattr(kernel.entries[1], "pcr", 11),
    "a measurement made a violation": lambda kernel: setattr(kernel.entries[1], "violation", True),
    "a violation made a measurement": lambda kernel: setattr(kernel.entries[2], "violation", False),
    "empty": lambda kernel: kernel.entries.clear(),
}


@pytest.mark.parametrize("name", BENDS)
def test_a_bent_list_is_refused(name: str) -> None:
    kernel = Kernel.busy()
    quote = ATTESTER.quote(kernel.pcrs())
    BENDS[name](kernel)
    with pytest.raises(ForgedError, match="PCR 10"):
        replay_ima_list(parse_ima_list(kernel.list()), quote)


def test_an_appended_entry_has_no_effect() -> None:
    kernel = Kernel.busy()
    honest = verify(kernel)
    quote = ATTESTER.quote(kernel.pcrs())
    kernel.file("/usr/bin/innocent", b"never measured")
    told = replay_ima_list(parse_ima_list(kernel.list()), quote)
    assert list(told.measurements()) == list(honest.measurements())


def test_a_relabelled_template_changes_only_what_is_called_untrusted() -> None:
    """The template's name is not measured: a signature may be called a buffer, and nothing else."""
    kernel = Kernel.busy()
    quote = ATTESTER.quote(kernel.pcrs())
    kernel.entries[1].template = b"ima-buf"
    bash = list(replay_ima_list(parse_ima_list(kernel.list()), quote).measurements())[1]
    assert (bash.path, bash.digest, bash.untrusted_role) == (
        "/usr/bin/bash",
        SHA256.digest(b"bash"),
        "buffer",
    )
    assert bash.third is not None
    assert SHA256.digest(bash.third) != bash.digest


def test_a_file_hidden_under_an_unknown_template_is_seen_to_be_unread() -> None:
    kernel = Kernel.busy()
    quote = ATTESTER.quote(kernel.pcrs())
    kernel.entries[1].template = b"ima-harmless"
    verified = replay_ima_list(parse_ima_list(kernel.list()), quote)
    assert verified.unread == {1}


def test_the_name_of_a_violation_is_no_more_than_a_name() -> None:
    """Nothing covers the data of a violation, so the list may say anything; the place is proven."""
    kernel = Kernel.busy()
    quote = ATTESTER.quote(kernel.pcrs())
    kernel.entries[2].data = fields(digest_field(b""), b"/usr/bin/harmless\0", b"")
    verified = replay_ima_list(parse_ima_list(kernel.list()), quote)
    assert verified.violations == {2}
    assert verified.violation_names() == ("/usr/bin/harmless",)


def test_a_list_of_another_boot_is_refused() -> None:
    other = Kernel.busy()
    other.entries[0].data = fields(digest_field(b"other PCRs"), b"boot_aggregate\0")
    with pytest.raises(ForgedError, match="PCR 10"):
        verify(Kernel.busy(), other.list())


def test_a_quote_without_the_pcr_proves_nothing() -> None:
    quote = ATTESTER.quote(Kernel.busy().pcrs(), selected=[0, 11])
    with pytest.raises(ForgedError, match="lacks PCR 10"):
        replay_ima_list(parse_ima_list(Kernel.busy().list()), quote)


def test_a_boot_aggregate_needs_all_its_pcrs() -> None:
    with pytest.raises(ValueError, match="no value of PCR 8"):
        expected_boot_aggregate({pcr: bytes(32) for pcr in range(8)}, bank=SHA256)


# Files that are expected


def test_what_is_not_accepted_is_told() -> None:
    kernel = Kernel.busy()
    accepted = accept_files(
        [
            ("sha256", SHA256.digest(b"the PCRs"), "boot_aggregate"),
            ("sha256", SHA256.digest(b"bash"), "/usr/bin/bash"),
            ("sha256", SHA256.digest(b"an older cat"), "/usr/bin/cat"),
        ]
    )
    quote = ATTESTER.quote(kernel.pcrs())
    listed = parse_ima_list(kernel.list())
    verified = replay_ima_list(listed, quote, accepted=accepted)
    assert [one.path for one in verified.unaccepted(accepted)] == ["kexec-cmdline", "/usr/bin/cat"]
    assert verified == replay_ima_list(listed, quote)


def test_accepted_files_of_another_bank_are_a_mistake() -> None:
    quote = ATTESTER.quote(Kernel.busy().pcrs())
    with pytest.raises(ValueError, match="another bank"):
        replay_ima_list(parse_ima_list(b""), quote, accepted=accept_files([], bank=SHA384))


# Octets


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (Kernel.busy().list()[:-1], "ends inside entry 4"),
        (Kernel.busy().list() + b"\0", "ends inside entry 5"),
        (Measured(b"ima-ng", b"x", pcr=24).encode(), "PCR 24"),
        (Measured(b"n" * 256, b"x").encode(), "name of 256"),
        (Measured(b"ima-ng", b"").encode()[:-4] + b"\xff\xff\xff\x7f", "ends inside entry 0"),
        (Measured(b"ima", bytes(20) + b"\xff\0\0\1" + bytes(300)).encode(), "a name of"),
        (bytes((1 << 26) + 1), "longer"),
    ],
)
def test_malformed_lists_are_refused(octets: bytes, reason: str) -> None:
    with pytest.raises(MalformedError, match=reason):
        parse_ima_list(octets)


@pytest.mark.parametrize(
    "data", [b"", b"\1\0\0\0", fields(b"", b"x"), fields(b"sha256:\0", b"x") + b"\x09\0\0\0a"]
)
def test_a_measurement_that_is_not_as_its_template_says_is_refused(data: bytes) -> None:
    kernel = Kernel([Measured(b"ima-sig", data)])
    with pytest.raises(MalformedError, match="entry 0 is not as its template says"):
        list(verify(kernel).measurements())


@given(st.binary(max_size=200), st.integers(0, len(Kernel.busy().list())))
def test_no_octets_do_anything_but_be_refused(octets: bytes, place: int) -> None:
    real = Kernel.busy().list()
    for candidate in (octets, real[:place] + octets, real[:place] + octets + real[place + len(octets) :]):
        with contextlib.suppress(EvidenceError):
            parsed = parse_ima_list(candidate)
            verified = replay_ima_list(parsed, ATTESTER.quote({10: bytes(32)}))
            list(verified.measurements())


@given(
    st.sampled_from([b"ima-ng", b"ima-sig", b"ima-buf", b"ima-ngv2", b"evm-sig", b"other"]),
    st.binary(max_size=80),
)
def test_no_measured_data_does_anything_but_be_refused(template: bytes, data: bytes) -> None:
    kernel = Kernel([Measured(template, data)])
    with contextlib.suppress(EvidenceError):
        verified = verify(kernel)
        list(verified.measurements())
        verified.violation_names()
