"""Whoever stands between the repository and the monitor, or holds too few keys, brings in no rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
from securesystemslib.signer import CryptoSigner

from affiant.model.errors import EvidenceError, ForgedError, MalformedError, UnavailableError
from affiant.model.launch_record import MAX_RULES_ROOT
from tests.rules_repository import DAY, Client, Repository, make_repository, rules_file


@pytest.fixture
def repository() -> Repository:
    return make_repository(version=5)


@pytest.fixture
def client(repository: Repository) -> Client:
    """A monitor that has taken version 5."""
    client = repository.client()
    assert client.update().changed
    return client


def refused(
    client: Client, error: type[Exception], match: str, *, version: int = 5, **expected: object
) -> None:
    """An update fails, and what judges is what judged before."""
    before = client.trusted.bundle
    with pytest.raises(error, match=match):
        client.update(**expected)
    assert client.trusted.bundle is before
    assert client.version == version


def bundle_path(repository: Repository) -> str:
    target = repository.metadata["targets"].signed.targets["web.rules"]
    return f"targets/{target.hashes['sha256']}.web.rules"


def test_an_older_repository_replayed_is_refused(repository, client):
    older = repository.copy()
    repository.publish(rules_file(6))
    assert client.update().bundle.version == 6
    client.repository = older
    refused(client, ForgedError, r"timestamp: version 2 is offered, 3 or later is due", version=6)


def test_an_older_bundle_signed_anew_is_refused(repository, client):
    """A publisher who goes back by mistake, or a thief of the targets key who wants the old rule."""
    repository.publish(rules_file(4))
    refused(client, ForgedError, r"bundle: version 4 is offered, 6 or later is due")


def test_another_bundle_of_the_same_version_is_refused(repository, client):
    repository.publish(rules_file(5, "harmless"))
    refused(client, ForgedError, r"bundle: version 5 is offered, 6 or later is due")


def test_a_frozen_timestamp_is_noticed_when_it_expires(repository, client):
    assert not client.update(after=DAY - 1).changed
    refused(client, ForgedError, "timestamp: expired", after=DAY)


def test_a_fresh_monitor_is_not_content_with_an_old_repository(repository):
    """It knows no older version: what the signed challenge demands decides."""
    fresh = repository.client()
    refused(fresh, ForgedError, "version 5 is offered, 6 or later is due", version=1, minimum_version=6)
    assert fresh.update(minimum_version=5).bundle.version == 5  # what is demanded is another each time
    repository.publish(rules_file(6))
    assert fresh.update(minimum_version=6).bundle.version == 6


def test_the_minimum_is_demanded_of_the_bundle_in_force_too(client):
    refused(client, ForgedError, "version 5 is offered, 6 or later is due", minimum_version=6)


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_a_mix_of_two_states_is_refused(repository, client, role):
    """Each file was signed once, and never for one another."""
    first = repository.copy()
    repository.publish(rules_file(6))
    version = repository.metadata[role].signed.version
    repository.files[f"metadata/{version}.{role}.json"] = first.files[f"metadata/{version - 1}.{role}.json"]
    refused(client, ForgedError, role)


def test_the_snapshot_of_another_branch_is_refused(repository, client):
    """The same version twice, both signed: the digests in the timestamp tell them apart."""
    other = repository.copy()
    repository.publish(rules_file(6, "good"))
    other.publish(rules_file(6, "evil"))
    repository.files["metadata/3.snapshot.json"] = other.files["metadata/3.snapshot.json"]
    refused(client, ForgedError, "snapshot")


def test_targets_that_vanish_from_the_snapshot_are_missed(repository, client):
    repository.publish(rules_file(6))
    del repository.metadata["snapshot"].signed.meta["targets.json"]
    repository.metadata["snapshot"].signed.meta["other.json"] = next(
        iter(make_repository().metadata["snapshot"].signed.meta.values())
    )
    repository.renew("snapshot")
    refused(client, ForgedError, r"targets\.json is gone")


def test_a_snapshot_that_takes_targets_back_is_refused(repository, client):
    repository.metadata["snapshot"].signed.meta["targets.json"].version -= 1
    repository.renew("snapshot")
    refused(client, ForgedError, r"targets\.json: version 1 is offered, 2 or later is due")


def test_a_timestamp_that_takes_the_snapshot_back_is_refused(repository, client):
    repository.metadata["timestamp"].signed.snapshot_meta.version -= 1
    repository.renew("timestamp")
    refused(client, ForgedError, "snapshot: version 1 is offered, 2 or later is due")


def test_a_tampered_script_is_refused(repository, client):
    repository.publish(rules_file(6))
    path = bundle_path(repository)
    repository.files[path] = repository.files[path].replace(b'ok("x")', b'ok("y")')
    refused(client, ForgedError, "bundle: Observed hash")


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_metadata_by_a_foreign_key_is_refused(repository, client, role):
    repository.publish(rules_file(6))
    repository.renew(role, by=[CryptoSigner.generate_ed25519()])
    refused(client, ForgedError, f"{role} was signed by 0/1 keys")


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_fewer_signers_than_the_threshold_are_refused(role):
    repository = make_repository(version=5, threshold=2, keys=3)
    client = repository.client()
    client.update()
    repository.publish(rules_file(6))
    repository.renew(role, by=repository.keys[role][:1])
    refused(client, ForgedError, f"{role} was signed by 1/2 keys")


def test_a_root_below_its_threshold_is_refused():
    repository = make_repository(version=5, threshold=2, keys=3)
    client = repository.client()
    client.update()
    repository.renew("root", by=repository.keys["root"][:1])
    refused(client, ForgedError, "root was signed by 1/2 keys")
    assert client.trusted.root_version == 1


def test_one_key_under_two_identifiers_is_one_signer(repository, client):
    """An identifier is chosen by whoever writes the root: two of them must be two keys."""
    key = repository.keys["targets"][0]
    twin = CryptoSigner(key._private_key, replace_identifier(key.public_key))
    repository.root.add_key(twin.public_key, "targets")
    repository.root.roles["targets"].threshold = 2
    repository.renew("root")
    refused(client, MalformedError, "one key counts twice for targets")


def replace_identifier(key):
    twin = type(key).from_dict("00" * 32, key.to_dict())
    twin.unrecognized_fields["note"] = "another"
    return twin


def test_a_revoked_key_signs_nothing_any_more(repository, client):
    """The lost key of targets is replaced; the thief publishes with it, with all online keys."""
    lost = repository.keys["targets"]
    repository.rotate("targets", CryptoSigner.generate_ed25519())
    repository.publish(rules_file(6))
    assert client.update().bundle.version == 6
    assert client.trusted.root_version == 2
    repository.publish(rules_file(7, "evil"))
    repository.renew("targets", by=lost)
    refused(client, ForgedError, "targets was signed by 0/1 keys", version=6)


def test_a_thief_of_a_revoked_root_key_cannot_rotate_back(repository, client):
    lost = repository.keys["root"]
    repository.rotate("root", CryptoSigner.generate_ed25519())
    client.update()
    assert client.trusted.root_version == 2
    repository.root.add_key(lost[0].public_key, "root")
    repository.renew("root", by=lost)
    refused(client, ForgedError, "root was signed by 0/1 keys")
    assert client.trusted.root_version == 2


def test_a_root_that_its_own_keys_did_not_sign_is_refused(repository, client):
    former = repository.keys["root"]
    repository.rotate("root", CryptoSigner.generate_ed25519())
    repository.sign("root", by=former)
    refused(client, ForgedError, "root was signed by 0/1 keys")


def test_a_root_that_skips_a_version_is_refused(repository, client):
    repository.renew("root")
    repository.renew("root")
    repository.files["metadata/2.root.json"] = repository.files["metadata/3.root.json"]
    refused(client, ForgedError, "root: version 3 follows version 1")


def test_rotations_stay_although_a_later_step_fails(repository, client):
    """Who can spoil a timestamp must not be able to take a revocation back with it."""
    without_rotation = repository.copy()
    repository.rotate("timestamp", CryptoSigner.generate_ed25519())
    repository.files["metadata/timestamp.json"] = b"{}"
    refused(client, MalformedError, "timestamp: unreadable")
    assert client.trusted.root_version == 2
    client.repository = without_rotation
    refused(client, ForgedError, "timestamp was signed by 0/1 keys")


def test_a_pinned_root_that_has_expired_only_leads_to_its_successor(repository):
    late = repository.client()
    refused(late, ForgedError, "root: expired", version=1, after=400 * DAY)
    repository.now += 399 * DAY
    for role in ("root", "targets"):
        repository.renew(role, days=600)
    for role in ("snapshot", "timestamp"):
        repository.renew(role, days=30)
    assert late.update(after=400 * DAY).bundle.version == 5


def test_endless_rotations_end(repository, client):
    for _ in range(40):
        repository.renew("root")
    repository.fetched.clear()
    client.update()
    assert client.trusted.root_version == 33
    assert len([path for path in repository.fetched if "root" in path]) == 32
    client.update()
    assert client.trusted.root_version == 41


@pytest.mark.parametrize("path", ["2.root.json", "timestamp.json", "3.snapshot.json", "3.targets.json"])
def test_endless_metadata_is_refused_even_from_a_careless_fetch(repository, client, path):
    repository.publish(rules_file(6))
    repository.renew("root")

    def careless(asked: str, maximum: int) -> bytes:
        assert maximum <= MAX_RULES_ROOT
        return b"{" * (maximum + 1) if asked == f"metadata/{path}" else repository.fetch(asked, maximum)

    with pytest.raises(EvidenceError, match=r"at most|Observed length"):
        client.trusted.update(careless, now=repository.now, fleet="web")
    assert client.version == 5


def test_an_endless_bundle_is_not_even_asked_for(repository, client):
    """Its length is in the signed targets, and bounded by us where they name more."""
    asked = {}

    def fetch(path: str, maximum: int) -> bytes:
        asked[path] = maximum
        return repository.fetch(path, maximum)

    huge = rules_file(6)
    rules = tuple(replace(huge.rules[0], name=f"rule_{n:04}", source="#" * 60_000) for n in range(20))
    repository.publish(replace(huge, rules=rules))
    with pytest.raises(UnavailableError, match="is larger than 1048576"):
        client.trusted.update(fetch, now=repository.now, fleet="web")
    assert asked[bundle_path(repository)] == 1 << 20
    assert client.version == 5


@pytest.mark.parametrize(("role", "wanted"), [("timestamp", "snapshot"), ("snapshot", "targets")])
def test_no_file_is_asked_for_that_no_repository_has(repository, client, role, wanted):
    """A thief of an online key chooses the version in a name, and so what the relay is asked for."""
    signed = repository.metadata[role].signed
    meta = signed.snapshot_meta if role == "timestamp" else signed.meta["targets.json"]
    meta.version = 10**12
    repository.renew(role)
    repository.fetched.clear()
    refused(client, MalformedError, f"{wanted}.json is no file of a repository")
    assert not [path for path in repository.fetched if str(10**12) in path]


@pytest.mark.parametrize("junk", [b"", b"[]", b"{}", b"[" * 9_000, b"\xff" * 64, b'{"signed":{"_type":"x"}}'])
@pytest.mark.parametrize("path", ["2.root.json", "timestamp.json"])
def test_junk_is_malformed_and_nothing_worse(repository, client, junk, path):
    repository.files[f"metadata/{path}"] = junk
    refused(client, MalformedError, "unreadable")


def test_metadata_of_another_role_is_refused(repository, client):
    """All of it is signed: a snapshot in place of the timestamp, a timestamp in place of a root."""
    files = repository.files
    timestamp = files["metadata/timestamp.json"]
    files["metadata/timestamp.json"] = files["metadata/2.snapshot.json"]
    refused(client, MalformedError, "timestamp: this is snapshot")
    files["metadata/2.root.json"] = timestamp
    refused(client, MalformedError, "root: this is timestamp")


def test_a_bundle_for_another_fleet_is_refused(repository, client):
    """Signed by the same operator, under the path of this fleet."""
    repository.publish(rules_file(6, fleet="laboratory"), path="web.rules")
    refused(client, ForgedError, "it is for the fleet laboratory, not for web")


def test_a_repository_without_this_fleet_is_refused(client):
    refused(client, ForgedError, "no bundle for the fleet laboratory", fleet="laboratory")


def test_another_root_than_the_pinned_one_is_refused(repository):
    with pytest.raises(ForgedError, match="not the one that is pinned"):
        repository.client(expected_digest=bytes(32))


def test_a_silent_relay_leaves_everything_as_it_was(repository, client):
    repository.publish(rules_file(6))
    del repository.files["metadata/timestamp.json"]
    refused(client, UnavailableError, "timestamp")


def test_what_was_refused_once_is_not_fetched_again(repository, client):
    """A signed bundle that cannot be used would else be carried to every monitor at every look."""
    repository.publish(rules_file(6, fleet="laboratory"), path="web.rules")
    refused(client, ForgedError, "for the fleet laboratory")
    repository.fetched.clear()
    refused(client, ForgedError, "for the fleet laboratory")
    assert not [path for path in repository.fetched if path.startswith("targets/")]
    repository.publish(rules_file(7))
    assert client.update().bundle.version == 7


def test_versions_that_a_lost_key_signed_bind_nobody_after_its_rotation(repository, client):
    """A thief who published the last version there is would else have stopped the fleet for ever."""
    repository.publish(rules_file((1 << 31) - 1, "evil"))
    assert client.update().bundle.version == (1 << 31) - 1
    repository.metadata["timestamp"].signed.version = 1 << 40
    repository.renew("timestamp")
    client.update()
    for role in ("targets", "snapshot", "timestamp"):
        repository.rotate(role, CryptoSigner.generate_ed25519())
    repository.metadata["timestamp"].signed.version = 7
    repository.publish(rules_file(6))
    assert client.update().bundle.version == 6
