"""The service's settings, as one value that the door makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from affiant.appraisal.policy import AppraisalPolicy
from affiant.model.errors import SetupError

__all__ = ["Limits", "ServiceSettings"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one process accepts from clients, none of which it trusts.

    `body_bytes` bounds a request's body; `body_seconds` and `head_seconds` bound how long a client
    may take to send body and head. `connections` bounds open connections, most of which idle (a host's
    relay keeps one for each machine), and `connections_per_client` those of one client, so that no client
    alone keeps the others out; so do `bodies` and `bodies_per_client` with the bodies that are being read
    at once, because these take memory. `workers` bounds the requests that are worked on at once. `burst`
    requests at once, then `requests_per_second`, are answered for one client: an IPv4 address or an IPv6
    network; files of the rules repository, which cost next to nothing, are counted by themselves.
    """

    body_bytes: int = 1 << 20
    head_seconds: float = 10.0
    body_seconds: float = 20.0
    connections: int = 4096
    connections_per_client: int = 512
    bodies: int = 256
    bodies_per_client: int = 64
    burst: int = 120
    requests_per_second: float = 20.0
    rules_burst: int = 1000
    rules_per_second: float = 200.0
    workers: int = 4


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """Where the service keeps its state and how long what it issues is good for (seconds).

    `folder` holds the keys (files of mode 0600) and, by default, the SQLite database; `database`
    is an SQLAlchemy address. `issuer` names the service in what it signs. A session certificate
    never lives longer than one hour, whatever `session_seconds` says. `policy` is what the operator's
    policy file says; monitors registered with the service count beside those in it. `rules` is the
    rules repository to give out; with `require_published_rules` a session takes its newest bundle.
    """

    folder: Path
    database: str = ""
    issuer: str = "affiant"
    challenge_seconds: int = 120
    enrolment_seconds: int = 300
    session_seconds: int = 3600
    refresh_seconds: int = 1800
    heartbeat_seconds: int = 30
    retention_seconds: int = 7 * 24 * 3600
    minimum_rules_version: int = 1
    require_published_rules: bool = False
    rules: Path | None = None
    minimum_security_version: int = 1
    accept_any_monitor_image: bool = False
    policy: AppraisalPolicy = field(default_factory=AppraisalPolicy)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 10 <= self.challenge_seconds <= 120:
            raise SetupError("a challenge lives between 10 and 120 seconds")
        if not 60 <= self.session_seconds <= 3600:
            raise SetupError("a session lives between one minute and one hour")
        if not 0 < self.refresh_seconds <= self.session_seconds:
            raise SetupError("a session must be refreshed before it ends")
        if self.require_published_rules and self.rules is None:
            raise SetupError("no rules are published that could be required", hint="--rules FOLDER")
        if not 2 <= self.heartbeat_seconds <= 3600:
            raise SetupError("a heartbeat is due within 2 seconds to one hour")
        if self.minimum_rules_version < 0 or self.minimum_security_version < 0:
            raise SetupError("a minimum version is not negative")
        if not 60 <= self.enrolment_seconds <= 900:
            raise SetupError("an enrolment must be proved within 1 to 15 minutes")

    @property
    def database_url(self) -> str:
        """The database's SQLAlchemy address: `database`, or SQLite in the folder."""
        return self.database or f"sqlite:///{self.folder / 'service.db'}"
