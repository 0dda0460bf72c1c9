"""A bundle's file: one encoding, bounded, and nothing that means two things."""

from __future__ import annotations

from dataclasses import replace

import pytest

from affiant.assertions.bundle import compile_bundle, library_file, make_bundle, packaged_library
from affiant.assertions.bundle_file import (
    MOST_BUNDLE_BYTES,
    BundledRule,
    BundleFile,
    Withdrawal,
    decode_bundle,
    encode_bundle,
)
from affiant.assertions.engine import Engine
from affiant.assertions.rollout import EVERYWHERE, Rollout
from affiant.assertions.selection import next_change, select
from affiant.model.errors import MalformedError
from affiant.model.outcome import Mode
from affiant.wire import cbor

STAGED = Rollout(Mode.AUDIT, enforce_from=200, percent=40, not_before=100, expires=300)
FILE = BundleFile(
    "web",
    7,
    (BundledRule("rule_a", "a"), BundledRule("rule_b", "b", STAGED)),
    (Withdrawal("rule_c", "it was wrong"),),
)


def changed(**fields: object) -> bytes:
    return encode_bundle(replace(FILE, **fields))  # type: ignore[arg-type]


def raw(key: int, value: object) -> bytes:
    item = cbor.decode(encode_bundle(FILE), max_size=1 << 16)
    assert isinstance(item, dict)
    return cbor.encode(item | {key: value})


def test_a_bundle_is_read_as_it_was_written():
    assert decode_bundle(encode_bundle(FILE)) == FILE


def test_the_library_is_a_bundle_file_like_any_other():
    file = library_file()
    assert decode_bundle(encode_bundle(file)) == file
    library = packaged_library()
    assert (library.name, library.version, library.digest) == (file.name, 1, file.digest)
    assert len(encode_bundle(file)) < MOST_BUNDLE_BYTES / 4


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "truncated"),
        (raw(0, "affiant/1/launch"), "kind"),
        (raw(5, 1), "unknown field"),
        (changed(name=""), "name"),
        (changed(version=0), "version"),
        (changed(version=1 << 31), "version"),
        (changed(rules=()), "0 entries"),
        (changed(rules=FILE.rules[::-1]), "not in the order"),
        (changed(rules=(FILE.rules[0], FILE.rules[0])), "not in the order"),
        (changed(rules=(BundledRule("Rule", ""),)), "is no name of a script"),
        (changed(rules=(BundledRule("rule_c", ""),)), "rule_c is among the rules, too"),
        (changed(withdrawn=(Withdrawal("rule_d", "a\nb"),)), "reason: a control character"),
        (changed(withdrawn=(Withdrawal("rule_d", "a\u202eb"),)), "not printable"),
        (changed(withdrawn=(Withdrawal("rule_e", ""), Withdrawal("rule_d", ""))), "not in the order"),
        (raw(3, [["rule_a", "a"]]), "2 elements instead of 3"),
        (raw(3, [["rule_a", "a", {1: "sometimes"}]]), "'sometimes' is none"),
        (raw(3, [["rule_a", "a", {3: 100}]]), "100 is not within 0 to 99"),
        (raw(3, [["rule_a", "a", {3: -1}]]), "-1 is not within"),
        (raw(3, [["rule_a", "a", {4: 5, 5: 5}]]), "ends before it begins"),
        (raw(3, [["rule_a", "a", {5: 1 << 62}]]), "expires"),
        (raw(3, [["rule_a", "a", {6: 1}]]), "unknown field"),
        (changed(rules=(BundledRule("rule_a", "x" * MOST_BUNDLE_BYTES),)), "at most"),
    ],
)
def test_what_is_no_bundle_is_malformed(data, why):
    with pytest.raises(MalformedError, match=why):
        decode_bundle(data)


def test_everything_in_the_file_counts_for_the_digest():
    others = [
        replace(FILE, name="lab"),
        replace(FILE, version=8),
        replace(FILE, withdrawn=()),
        replace(FILE, rules=(FILE.rules[0], replace(FILE.rules[1], source="c"))),
        replace(FILE, rules=(FILE.rules[0], replace(FILE.rules[1], rollout=EVERYWHERE))),
    ]
    assert len({file.digest for file in (FILE, *others)}) == 6


def test_a_rule_judges_between_its_times_in_the_mode_of_the_time(write):
    file = BundleFile("web", 2, (BundledRule("example", write(), replace(STAGED, percent=100)),))
    bundle = compile_bundle(file)

    def at(now: int) -> list[Mode]:
        return [script.mode for script in select(bundle, device=b"1", now=now).scripts]

    moments = {
        99: [],
        100: [Mode.AUDIT],
        199: [Mode.AUDIT],
        200: [Mode.ENFORCE],
        299: [Mode.ENFORCE],
        300: [],
    }
    assert {now: at(now) for now in moments} == moments
    assert [next_change(bundle, now=now) for now in (0, 100, 200, 300)] == [100, 200, 300, None]
    assert select(bundle, device=b"1", now=150).used == bundle.used


def test_a_rule_without_a_roll_out_judges_everywhere_as_it_says(write):
    bundle = make_bundle("web", 2, {"example": write(MODE='"audit"')})
    assert select(bundle, device=b"any", now=0) == bundle
    assert next_change(bundle, now=0) is None


def test_a_share_of_the_fleet_is_about_its_size_and_grows_by_itself():
    devices = [index.to_bytes(32, "big") for index in range(4000)]

    def share(percent: int, rule: str = "rule") -> set[bytes]:
        return {device for device in devices if Rollout(percent=percent).reaches(rule, device)}

    assert not share(0)
    assert len(share(100)) == 4000
    assert 300 < len(share(10)) < 500
    assert share(10) < share(25) < share(80)
    assert share(10) != share(10, "another")  # not always the same machines go first


@pytest.mark.parametrize("percent", [-1, 101])
def test_a_percentage_is_one(percent):
    with pytest.raises(ValueError, match="percentage"):
        Rollout(percent=percent)


def test_a_machine_that_no_rule_reaches_has_no_verdicts(write):
    file = BundleFile("web", 2, (BundledRule("example", write(), Rollout(percent=0)),))
    nothing = select(compile_bundle(file), device=b"1", now=0)
    with Engine(nothing) as engine:
        assert engine.judge({"fact": {}}) == ()
