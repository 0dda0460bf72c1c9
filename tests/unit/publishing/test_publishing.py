"""A bundle's way from a script to a monitor, and what stops it."""

from __future__ import annotations

import json

import pytest

from affiant.assertions.selection import next_change, select
from affiant.model.errors import ForgedError
from affiant.model.outcome import Mode
from tests.unit.publishing.conftest import RULE, Desk

DAY = 86_400


def test_what_was_signed_by_enough_people_reaches_a_monitor(published):
    update = published.monitor().update()
    assert update.changed
    assert (update.bundle.name, update.bundle.version) == ("web", 2)
    assert [script.name for script in update.bundle.scripts] == ["no_evil"]


def test_the_digest_that_a_report_names_is_that_of_the_file_given_out(published):
    update = published.monitor().update()
    assert f"targets/{update.bundle.digest.hex()}.web.rules" in published.given_out()


def test_the_first_bundle_begins_with_the_library(desk):
    desk.done("init", "--fleet", "web")
    desk.done("new-key", "alice.pem", "--unsafe-no-passphrase")
    desk.done("add-key", "root", "alice.pub")
    desk.done("add-key", "targets", "alice.pub")
    desk.done("publish", "no_evil.star", "--audit", "--key", "alice.pem")
    names = [script.name for script in desk.monitor().update().bundle.scripts]
    assert {"no_evil", "kernel_text_intact", "modules_listed"} <= set(names)
    assert names == sorted(names)


def test_a_stock_client_takes_it_too(published, tmp_path):
    """The repository is plain TUF: python-tuf's own client, with its own clock and folder."""
    from datetime import UTC, datetime
    from pathlib import Path

    from tuf.api.exceptions import DownloadHTTPError
    from tuf.ngclient import FetcherInterface, Updater

    folder = published.folder.public

    class Files(FetcherInterface):
        def _fetch(self, url):
            path = folder / url.removeprefix("https://rules.example/")
            if not path.exists():
                raise DownloadHTTPError("not found", 404)
            return iter([path.read_bytes()])

    published.time = int(datetime.now(UTC).timestamp())
    published.done("renew", "targets")
    published.signed("alice", "bob")
    published.done("publish")
    local = tmp_path / "local"
    local.mkdir()
    updater = Updater(
        str(local),
        "https://rules.example/metadata/",
        str(local),
        "https://rules.example/targets/",
        Files(),
        bootstrap=(folder / "metadata/1.root.json").read_bytes(),
    )
    target = updater.get_targetinfo("web.rules")
    assert target is not None
    path = Path(updater.download_target(target))
    assert path.read_bytes() == (folder / "targets" / target.get_prefixed_paths()[0]).read_bytes()


def test_one_signature_of_two_publishes_nothing(published):
    published.here("no_evil.star").write_text(RULE.replace("low", "high"))
    published.refused("publish", "no_evil.star", code=1)
    published.signed("alice")
    said = published.refused("publish", code=1)
    assert "targets has 1 of 2 signatures" in said
    assert "may sign: bob" in said
    assert published.monitor().update().bundle.version == 2
    published.signed("bob")
    published.done("publish")
    assert published.monitor().update().bundle.version == 3


def test_a_draft_that_was_changed_after_signing_needs_all_signatures_again(published):
    published.refused("publish", "no_evil", "--audit", code=1)
    published.signed("alice", "bob")
    published.refused("publish", "no_evil", "--enforce", code=1)
    assert "targets has 0 of 2" in published.out


def test_a_bundle_in_the_draft_that_was_tampered_with_is_not_signed(published):
    published.refused("publish", "no_evil", "--audit", code=1)
    (file,) = published.folder.draft.glob("*.rules")
    file.write_bytes(file.read_bytes().replace(b"evil", b"good"))
    assert "Observed hash" in published.refused("sign", "alice.pem", "--yes")
    assert "Observed hash" in published.refused("publish")


def test_a_signer_sees_what_is_signed(published):
    published.refused("publish", "no_evil", "--audit", "--percent", "10", code=1)
    said = published.done("sign", "alice.pem", "--yes")
    assert "web version 3" in said
    assert "no_evil: rolled out: audit, on 10 % of the fleet" in said
    assert published.done("show") == "no_evil: audit, on 10 % of the fleet\n"
    assert published.done("show", "no_evil") == RULE


def test_a_signer_who_says_no_has_not_signed(published, monkeypatch):
    published.refused("publish", "no_evil", "--audit", code=1)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert "not signed" in published.refused("sign", "alice.pem", code=1)
    assert "targets has 0 of 2" in published.refused("publish", code=1)


@pytest.mark.parametrize(
    ("source", "word"),
    [
        (RULE.replace('FACTS = ["modules"]', 'FACTS = ["modulus"]'), "modulus"),
        (RULE.replace("return observations", "return observation"), "observation"),
        (RULE.replace("Cannot see", "Sees"), "Cannot see"),
        (RULE + "(", "no_evil"),
    ],
)
def test_a_script_that_does_not_lint_is_not_published(published, tmp_path, source, word):
    (tmp_path / "no_evil.star").write_text(source)
    assert word in published.refused("publish", "no_evil.star")
    assert not list(published.folder.draft.iterdir())


def test_a_script_that_its_recordings_contradict_is_not_published(published, tmp_path):
    recording = {
        "about": "x",
        "outcome": "holds",
        "subjects": [],
        "facts": {"modules": {"listed": [{"name": "evil"}]}},
    }
    (tmp_path / "no_evil.healthy.json").write_text(json.dumps(recording))
    assert "not published" in published.refused("publish", "no_evil.star")
    recording |= {"outcome": "violated", "subjects": ["module evil"]}
    (tmp_path / "no_evil.healthy.json").write_text(json.dumps(recording))
    assert "warning" in published.refused("publish", "no_evil.star", code=1)  # signatures alone are missing


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_version_that_goes_back_is_refused(published, version):
    assert "would go back" in published.refused("publish", "no_evil.star", "--version", version)


def test_a_version_may_leave_some_out(published):
    published.refused("publish", "no_evil.star", "--version", "40", code=1)
    published.signed("alice", "bob")
    published.done("publish")
    assert published.monitor().update().bundle.version == 40


def test_a_withdrawn_rule_judges_no_more_and_is_told(published, tmp_path):
    (tmp_path / "no_good.star").write_text(RULE.replace("no_evil", "no_good"))
    published.refused("publish", "no_good.star", code=1)
    published.refused("withdraw", "no_evil", "--reason", "too many false alarms", code=1)
    published.signed("alice", "bob")
    published.done("publish")
    bundle = published.monitor().update().bundle
    assert [script.name for script in bundle.scripts] == ["no_good"]
    assert [(one.name, one.reason) for one in bundle.withdrawn] == [("no_evil", "too many false alarms")]
    assert "no_evil: withdrawn: too many false alarms" in published.done("status")
    published.refused("publish", "no_evil.star", code=1)
    published.signed("alice", "bob")
    published.done("publish")
    assert not published.monitor().update().bundle.withdrawn


def test_the_last_rule_is_not_withdrawn(published):
    assert "last rule" in published.refused("withdraw", "no_evil", "--reason", "x")
    assert "no rule 'unknown'" in published.refused("withdraw", "unknown", "--reason", "x")


def test_a_rule_is_rolled_out_in_stages(published):
    published.refused(
        "publish",
        "no_evil",
        "--audit",
        "--enforce-from",
        "+7d",
        "--percent",
        "20",
        "--expires",
        "2027-06-01",
        code=1,
    )
    published.signed("alice", "bob")
    published.done("publish")
    bundle = published.monitor().update().bundle
    devices = [bytes([index]) * 32 for index in range(200)]
    judged = [device for device in devices if select(bundle, device=device, now=published.time).scripts]
    assert 20 < len(judged) < 60
    (script,) = select(bundle, device=judged[0], now=published.time).scripts
    assert script.mode is Mode.AUDIT
    change = next_change(bundle, now=published.time)
    assert change == published.time + 7 * DAY
    (script,) = select(bundle, device=judged[0], now=change).scripts
    assert script.mode is Mode.ENFORCE
    last = next_change(bundle, now=change)
    assert not select(bundle, device=judged[0], now=last).scripts
    published.refused("publish", "no_evil", "--percent", "60", code=1)
    published.signed("alice", "bob")
    published.done("publish")
    wider = published.monitor().update().bundle
    assert all(select(wider, device=device, now=change).scripts for device in judged)


def test_what_is_not_said_of_a_roll_out_stays(published):
    """Audit on a few machines, then on all: it must not be enforced by the way."""
    for words in (("--audit", "--percent", "5", "--enforce-from", "+7d"), ("--percent", "100")):
        published.refused("publish", "no_evil", *words, code=1)
    assert published.done("show").startswith("no_evil: audit, enforce from 2027-01-22 08:00 UTC, everywhere")
    published.refused("publish", "no_evil", "--audit", code=1)
    assert published.done("show") == "no_evil: audit, everywhere\n"
    published.refused("publish", "no_evil", "--as-written", "--percent", "7", code=1)
    assert published.done("show") == "no_evil: on 7 % of the fleet\n"


def test_a_withdrawn_rule_of_the_library_does_not_come_back_with_it(published):
    published.refused("publish", "--library", code=1)
    published.refused("withdraw", "kernel_known", "--reason", "x", code=1)
    published.refused("publish", "--library", code=1)
    names = [line.partition(":")[0] for line in published.done("show").splitlines()]
    assert "kernel_known" not in names
    assert {"no_evil", "modules_listed"} <= set(names)


@pytest.mark.parametrize(
    "words",
    [
        ("no_evil", "--not-before", "+2d", "--expires", "+1d"),
        ("unknown",),
        ("--percent", "5"),
        ("no_such_file.star",),
    ],
)
def test_what_cannot_be_meant_is_refused(published, words):
    assert "error: " in published.refused("publish", *words)


def test_a_time_that_is_none_is_a_usage_error(published):
    with pytest.raises(SystemExit) as leaving:
        published.run("publish", "no_evil", "--expires", "tomorrow")
    assert leaving.value.code == 2


def test_a_timestamp_that_nobody_refreshes_is_told_as_expired(published):
    monitor = published.monitor()
    monitor.update()
    published.time += DAY
    assert published.run("status") == 1
    assert "timestamp  EXPIRED" in published.out
    with pytest.raises(ForgedError, match="timestamp: expired"):
        monitor.update()
    assert "timestamp.json" in published.done("refresh")
    assert not monitor.update().changed
    published.done("status")


def test_refreshing_signs_the_snapshot_anew_when_half_of_its_life_is_over(published):
    before = published.given_out()
    published.time += 6 * DAY
    published.done("refresh")
    assert set(published.given_out()) == set(before)
    published.time += 2 * DAY
    assert "2.snapshot.json" in published.done("refresh")
    published.monitor().update()


def test_a_refresh_without_a_bundle_says_what_to_do(desk):
    desk.done("init")
    assert "hint: affiant rules publish" in desk.refused("refresh")


def test_targets_are_renewed_without_another_bundle(published):
    monitor = published.monitor()
    monitor.update()
    published.time += 179 * DAY
    published.done("renew", "targets")
    published.signed("alice", "bob")
    published.done("publish")
    published.time += 10 * DAY
    published.done("refresh")
    assert not monitor.update().changed


def test_a_second_fleet_of_the_repository_has_its_own_bundle(published):
    published.refused(
        "publish", "no_evil.star", "--fleet", "lab", "--without-library", "--version", "9", code=1
    )
    published.signed("alice", "bob")
    published.done("publish")
    monitor = published.monitor()
    assert monitor.update().bundle.version == 2
    other = published.monitor()
    assert other.update(fleet="lab").bundle.name == "lab"
    assert other.trusted.bundle.version == 9


def test_status_is_for_programs_too(published):
    status = json.loads(published.done("status", "--json"))
    assert status["bundle"]["version"] == 2
    assert status["expired"] == []
    assert status["roles"]["targets"]["threshold"] == 2
    published.refused("publish", "no_evil", "--audit", code=1)
    draft = json.loads(published.done("status", "--json"))["draft"]
    assert draft["changes"] == [{"rule": "no_evil", "what": "rolled out", "detail": "audit, everywhere"}]
    assert draft["signatures"][0]["missing"] == 2


def test_a_discarded_draft_leaves_nothing(published):
    published.refused("publish", "no_evil", "--audit", code=1)
    published.done("discard")
    assert "there is nothing to publish" in published.refused("publish", code=1)


def test_two_at_once_do_not_mix(published):
    with published.folder.locked():
        assert "somebody else" in published.refused("refresh", code=3)


def test_where_there_is_no_repository_nothing_is_done(desk: Desk):
    for words in (("status",), ("refresh",), ("publish",), ("show",)):
        assert desk.run(*words) == 2
        assert "hint: affiant rules init" in desk.out


def test_a_repository_is_not_made_twice(published):
    assert "already" in published.refused("init", "--fleet", "web")


def test_the_rules_of_a_bundle_are_shown_for_programs(published):
    listed = json.loads(published.done("show", "--json"))
    assert {"name", "rollout", "source"} == listed[0].keys()
    assert [f"{rule['name']}: {rule['rollout']}" for rule in listed] == published.done("show").splitlines()
    (one,) = json.loads(published.done("show", listed[0]["name"], "--json"))
    assert one == listed[0]
    assert "hint: did you mean" in published.refused("show", listed[0]["name"] + "x", "--json")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--expires", "yesterday"), "'yesterday' is no moment: +30m, +12h, +7d, or a date"),
        (("--percent", "101"), "'101' is no percentage: 0 to 100"),
        (("--percent", "-1"), "'-1' is no percentage: 0 to 100"),
    ],
)
def test_what_cannot_be_meant_is_told_with_what_can(published, capsys, words, said):
    with pytest.raises(SystemExit, match="2"):
        published.run("publish", "no_evil", *words)
    assert said in capsys.readouterr().err


def test_a_misspelt_rule_is_not_taken_for_a_new_one(published):
    name = json.loads(published.done("show", "--json"))[0]["name"]
    assert f"hint: did you mean {name}" in published.refused("publish", name + "s", "--audit")
    assert "hint: give its file to put it in: zzz.star" in published.refused("publish", "zzz")
