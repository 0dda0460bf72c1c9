"""The operator's policy file in the service: one rule that a machine does not meet costs level 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from affiant.appraisal.policy import AcceptedMonitor, policy_digest
from affiant.appraisal.policy_file import parse_policy
from affiant.cli import main
from affiant.model.level import SecurityLevel
from affiant.service.database import transaction
from affiant.service.opening import current_policy
from tests.boot_log import BootLog
from tests.simulator import MONITOR_IMAGE, make_world

POLICY = """
format = 1
[command_line]
accepted = ["console=ttyS0 panic=-1 quiet \\"affiant.test=two words\\""]
required = ["quiet"]
[launch]
minimum_security_version = 1
"""


def test_a_machine_that_meets_the_stated_rules_keeps_its_level(tmp_path: Path) -> None:
    policy = parse_policy(POLICY.encode()).policy
    world = make_world(tmp_path / "service", policy=policy)
    session = world.machine().attest()
    assert session.report.level is SecurityLevel.ENFORCED_CODE, session.report.shortfalls


def test_a_machine_that_does_not_is_told_which_rule(tmp_path: Path) -> None:
    policy = parse_policy(POLICY.replace("quiet", "debug").encode()).policy
    world = make_world(tmp_path / "service", policy=policy)
    report = world.machine().attest().report
    assert report.level is SecurityLevel.ROOTED
    missing = {one.claim: one.explanation for one in report.shortfalls if one.claim != "host_attested"}
    assert set(missing) == {"boot_rules_met"}
    assert "command line" in missing["boot_rules_met"]


def test_a_hostile_command_line_stays_within_the_report(tmp_path: Path) -> None:
    """The reason quotes the guest's words, which may be of any length and any characters."""
    policy = parse_policy(POLICY.encode()).policy
    world = make_world(tmp_path / "service", policy=policy)
    machine = world.machine()
    log = BootLog.recorded()
    log.replace_text("quiet", "\x1b[2J" + "ü" * 900)
    machine.log = log
    report = machine.boot().attest().report
    explanation = next(one.explanation for one in report.shortfalls if one.claim == "boot_rules_met")
    assert explanation.isascii()
    assert explanation.isprintable()


def test_registered_monitors_count_beside_those_in_the_file(tmp_path: Path) -> None:
    image = "ab" * 32
    text = POLICY.replace("minimum_security_version = 1", "minimum_security_version = 2")
    text += f"[[launch.monitors]]\nimage = '{image}'\nversion = '9'\nsecurity_version = 9\n"
    policy = parse_policy(text.encode()).policy
    world = make_world(tmp_path / "service", policy=policy)
    with transaction(world.service.context.engine) as connection:
        current = current_policy(world.service.context, connection)
    assert current.monitors == {
        AcceptedMonitor(MONITOR_IMAGE, "0.1.0", 1),
        AcceptedMonitor(bytes.fromhex(image), "9", 9),
    }
    assert current.minimum_security_version == 2
    assert current.boot == policy.boot
    assert policy_digest(current) != policy_digest(policy)


def test_the_service_refuses_to_start_on_a_policy_that_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "policy.toml"
    for content in (None, "format = 1\n[secure-boot]\n"):
        if content is not None:
            path.write_text(content)
        assert main(["service", "run", "--folder", str(tmp_path / "s"), "--policy", str(path)]) == 2
        assert "policy" in capsys.readouterr().err
