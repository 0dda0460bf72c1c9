"""What the launcher tells a monitor at its start; nothing here is secret."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from dataclasses import dataclass

from affiant.model.errors import MalformedError
from affiant.wire.rules_path import DEFAULT_FLEET, FLEET

__all__ = ["MonitorSettings"]

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """The guest's shape, the pinned root and the rhythm of measuring.

    `memory_bytes` is the size of the guest's RAM file, `below_4g_bytes` how much of it lies below
    4 GiB in guest-physical space. `service_root` is a DER certificate; it counts only when its
    SHA-256 stands in the launch record; so is `rules_root`, the root file of published rules, None where
    the packaged library is all there is. `fleet` says which fleet's rules these are, as the record does;
    every `rules_interval_ms` they are asked for anew. `references` is a folder of reference images. Between
    two measurements pass at least `interval_min_ms` and at most `interval_max_ms`, chosen at random.

    Every `keep_facts_ms` all facts are recorded for the launcher to keep (0: never), sealed to the
    operator's X25519 key `facts_key` (32 bytes; empty: not sealed).
    """

    memory_bytes: int
    below_4g_bytes: int
    service_root: bytes
    references: str
    interval_min_ms: int = 1_000
    interval_max_ms: int = 10_000
    rules_root: bytes | None = None
    fleet: str = DEFAULT_FLEET
    rules_interval_ms: int = 5_000
    keep_facts_ms: int = 0
    facts_key: bytes = b""

    def __post_init__(self) -> None:
        if not 0 < self.below_4g_bytes <= self.memory_bytes or self.memory_bytes % _MIB:
            raise MalformedError("monitor settings: the guest's memory sizes do not fit each other")
        if not 50 <= self.interval_min_ms <= self.interval_max_ms <= 3_600_000:
            raise MalformedError("monitor settings: the measuring interval is outside 50 ms to one hour")
        if not FLEET.fullmatch(self.fleet):
            raise MalformedError("monitor settings: the fleet's name is none")
        if not 1_000 <= self.rules_interval_ms <= 3_600_000:
            raise MalformedError("monitor settings: the rules' interval is outside one second to one hour")
        if not 0 <= self.keep_facts_ms <= 86_400_000 or len(self.facts_key) not in (0, 32):
            raise MalformedError(
                "monitor settings: facts are kept at least once a day, for a key of 32 bytes"
            )

    @classmethod
    def from_json(cls, text: str) -> MonitorSettings:
        """Read the settings; unknown, missing or mistyped fields raise MalformedError."""
        try:
            fields = json.loads(text)
            for name in ("service_root", "rules_root", "facts_key"):
                if fields.get(name) is not None:
                    fields[name] = base64.b64decode(fields[name], validate=True)
            settings = cls(**fields)
        except (ValueError, TypeError, KeyError, binascii.Error) as error:
            raise MalformedError(f"monitor settings: {error}") from error
        expected = {
            "service_root": bytes,
            "rules_root": bytes,
            "facts_key": bytes,
            "references": str,
            "fleet": str,
        }
        for name in fields:
            if type(fields[name]) is not expected.get(name, int) and (name, fields[name]) != (
                "rules_root",
                None,
            ):
                raise MalformedError(f"monitor settings: {name} has the wrong type")
        return settings

    def to_json(self) -> str:
        """Write the settings as `from_json` reads them."""
        fields = dataclasses.asdict(self)
        for name in ("service_root", "rules_root", "facts_key"):
            if fields[name] is not None:
                fields[name] = base64.b64encode(fields[name]).decode()
        return json.dumps(fields)
