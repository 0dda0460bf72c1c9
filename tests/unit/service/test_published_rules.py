"""The rules repository as the service gives it out: static files, and nothing beside them."""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from affiant.model.errors import ForgedError, SetupError, UnavailableError
from affiant.model.level import SecurityLevel
from affiant.service.http import build_app
from affiant.service.published_rules import PublishedRules
from affiant.service.settings import Limits
from tests.rules_repository import Repository, make_repository, rules_file
from tests.simulator import World, make_world

TIMESTAMP = "metadata/timestamp.json"


@pytest.fixture
def repository() -> Repository:
    return make_repository(version=5)


@pytest.fixture
def folder(repository: Repository, tmp_path: Path) -> Path:
    return repository.write(tmp_path / "rules")


@pytest.fixture
def world(folder: Path, tmp_path: Path) -> World:
    return make_world(tmp_path / "service", rules=folder)


def get(
    world: World, path: str, *, limits: Limits | None = None, times: int = 1, **headers: str
) -> httpx.Response:
    """Ask the application, `times` times; return the last answer."""

    async def send() -> httpx.Response:
        app = build_app(world.service.api, limits=limits or Limits(), clock=lambda: world.service.now)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            for _ in range(times):
                answer = await client.get(f"/v1/rules/{path}", headers=headers)
            return answer

    return asyncio.run(send())


def test_every_file_of_the_repository_is_given_out(world: World, repository: Repository) -> None:
    for path, content in repository.files.items():
        answer = get(world, path)
        assert (answer.status_code, answer.content) == (200, content)


def test_versioned_files_may_be_kept_for_ever_and_the_timestamp_is_asked_for_again(
    world: World, repository: Repository
) -> None:
    caching = {path: get(world, path).headers["cache-control"] for path in repository.files}
    assert caching.pop(TIMESTAMP) == "no-cache"
    assert set(caching.values()) == {"public, max-age=31536000, immutable"}


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', '{} , W/"other"'])
def test_who_has_the_newest_is_told_so_in_a_line(world: World, form: str) -> None:
    tag = get(world, TIMESTAMP).headers["etag"]
    answer = get(world, TIMESTAMP, **{"if-none-match": form.format(tag)})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)


def test_what_is_published_is_given_out_at_once(world: World, folder: Path, repository: Repository) -> None:
    before = get(world, TIMESTAMP)
    repository.publish(rules_file(6))
    repository.write(folder)
    after = get(world, TIMESTAMP, **{"if-none-match": before.headers["etag"]})
    assert (after.status_code, after.content) == (200, repository.files[TIMESTAMP])


@pytest.mark.parametrize(
    "path",
    [
        "",
        "metadata",
        "metadata/",
        "metadata/root.json",
        "metadata/9.root.json",
        "../online/timestamp.pem",
        "metadata/../../online/timestamp.pem",
        "metadata/%2e%2e/%2e%2e/online/timestamp.pem",
        "%2e%2e/settings.json",
        "/etc/passwd",
        "metadata/.timestamp.json.new",
        "metadata/timestamp.json%00",
        "metadata/timestamp.json/",
        "targets/" + "0" * 64 + ".web.rules",
    ],
)
def test_nothing_else_is_given_out(world: World, folder: Path, path: str) -> None:
    """Neither keys and drafts beside the public files, nor anything by a name that climbs."""
    (folder / "online").mkdir()
    (folder / "online" / "timestamp.pem").write_text("secret")
    (folder / "settings.json").write_text("secret")
    (folder / "public" / "metadata" / ".timestamp.json.new").write_text("secret")
    answer = get(world, path)
    assert answer.status_code == 404
    assert "secret" not in answer.text


def test_a_file_that_is_missing_is_not_remembered_as_missing(world: World) -> None:
    """The next root is asked for before it exists; a cache may keep a 404 unless it is told otherwise."""
    answer = get(world, "metadata/2.root.json")
    assert (answer.status_code, answer.headers["cache-control"]) == (404, "no-store")


def test_links_pipes_and_oversized_files_are_not_followed(world: World, folder: Path, tmp_path: Path) -> None:
    metadata = folder / "public" / "metadata"
    (tmp_path / "secret").write_text("secret")
    (metadata / "7.root.json").symlink_to(tmp_path / "secret")
    os.mkfifo(metadata / "8.root.json")
    (metadata / "9.root.json").write_bytes(bytes((1 << 20) + 1))
    (metadata / "10.root.json").mkdir()
    for number in (7, 8, 9, 10):
        assert get(world, f"metadata/{number}.root.json").status_code == 404


def test_rules_have_a_rate_of_their_own(world: World) -> None:
    limits = Limits(burst=1, requests_per_second=0.001, rules_burst=3, rules_per_second=0.001)
    assert get(world, TIMESTAMP, limits=limits, times=3).status_code == 200
    assert get(world, TIMESTAMP, limits=limits, times=4).status_code == 429


def test_a_service_without_a_repository_has_none(tmp_path: Path) -> None:
    world = make_world(tmp_path / "bare")
    assert get(world, TIMESTAMP).status_code == 404
    assert world.machine().attest().heartbeat().rules is None


def test_a_folder_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no rules repository"):
        PublishedRules(tmp_path)


def test_a_heartbeat_tells_of_what_was_published(world: World, folder: Path, repository: Repository) -> None:
    """The hint by which monitors look at once; what it is worth, they verify."""
    session = world.machine().attest()
    for version in (6, 7):
        assert session.heartbeat().rules == hashlib.sha256(repository.files[TIMESTAMP]).digest()
        repository.publish(rules_file(version))
        repository.write(folder)
    assert session.heartbeat().rules == hashlib.sha256(repository.files[TIMESTAMP]).digest()


def test_monitors_under_the_published_root_are_accepted(world: World, repository: Repository) -> None:
    root = hashlib.sha256(repository.files["metadata/1.root.json"]).digest()
    assert world.machine(rules_root=root).attest().report.level is SecurityLevel.ENFORCED_CODE
    assert world.machine(rules_root=bytes(32)).attest().report.level is SecurityLevel.VERIFIED_BOOT


def test_a_service_that_requires_its_rules_names_the_newest(
    folder: Path, repository: Repository, tmp_path: Path
) -> None:
    """A relay that shows an older repository to a monitor that begins anew gets no session with it."""
    world = make_world(tmp_path / "strict", rules=folder, require_published_rules=True)
    machine = world.machine()
    for version in (5, 6):
        challenge = world.service.challenge()
        assert challenge.minimum_rules_version == version
        with pytest.raises(ForgedError, match=f"the challenge demands {version}"):
            machine.send(machine.answer(challenge, rules_version=version - 1))
        machine.send(machine.answer(world.service.challenge(), rules_version=version))
        repository.publish(rules_file(6))
        repository.write(folder)
    assert make_world(tmp_path / "lax", rules=folder).service.challenge().minimum_rules_version == 1


def test_of_several_fleets_the_oldest_bundle_is_required(folder: Path, repository: Repository) -> None:
    repository.publish(replace(rules_file(3), name="db"), path="db.rules")
    rules = PublishedRules(repository.write(folder))
    assert rules.newest_version() == 3


def test_a_repository_that_is_not_whole_opens_no_session(folder: Path, tmp_path: Path) -> None:
    world = make_world(tmp_path / "strict", rules=folder, require_published_rules=True)
    for file in (folder / "public" / "targets").iterdir():
        file.unlink()
    with pytest.raises(UnavailableError, match="not whole"):
        world.service.challenge()


def test_required_rules_need_a_repository(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no rules are published"):
        make_world(tmp_path, require_published_rules=True)
