"""Keeping facts: what a look saw, signed in the name of the session and handed to the launcher.

Off unless an operator asks for it. The monitor has no disk and no network; it keeps nothing itself.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping
from typing import Any

from affiant.assertions.bundle import Bundle
from affiant.assertions.query import query_identity
from affiant.kernel.facts.registry import FACTS
from affiant.model.errors import AffiantError
from affiant.model.fact_record import FactRecord
from affiant.model.outcome import Outcome
from affiant.monitor.launcher_client import LauncherClient
from affiant.monitor.session import Session
from affiant.monitor.watch import Look
from affiant.wire.cose import parse_sign1
from affiant.wire.fact_record import MAX_FACTS, MAX_PACKED, pack_facts, sign_fact_record, write_kept
from affiant.wire.launcher_requests import Keep

__all__ = ["FactKeeper"]

_LOG = logging.getLogger(__name__)


class FactKeeper:
    """Records one look every so often, and the look that first shows each violation of a boot.

    `recipient` is the operator's X25519 key (32 bytes) that records are sealed to, or None.
    """

    def __init__(
        self, launcher: LauncherClient, bundle: Bundle, *, every_ms: int, recipient: bytes | None
    ) -> None:
        self._launcher = launcher
        self._bundle = bundle
        self._every_ms = every_ms
        self._recipient = recipient
        self._chain = secrets.token_bytes(16)
        self._sequence = 0
        self._previous = bytes(32)
        self._due_ms = 0
        self._known: frozenset[str] = frozenset()

    def use(self, bundle: Bundle) -> None:
        """Take note that other rules judge from now on: their facts are recorded, under their names."""
        self._bundle = bundle

    def begin_boot(self) -> None:
        """Take note that the guest was started anew: what is violated then is seen for the first time."""
        self._known = frozenset()
        self._due_ms = 0

    def due(self, now_ms: int) -> bool:
        """Tell whether the next look is one to record, whatever it shows: it must see everything then."""
        return now_ms >= self._due_ms

    def take(self, look: Look, session: Session, *, whole: bool, now_ms: int) -> None:
        """Record a look if it is due (`whole`: it saw everything), or shows a violation not kept yet.

        Never raises because a record is not kept: measuring goes on, and the log says so.
        """
        violated = frozenset(result.name for result in look.results if result.outcome is Outcome.VIOLATED)
        if not look.facts or not (whole or violated - self._known):
            return
        taken_at = max(session.clock.now(now_ms), session.report.issued_at)
        if taken_at >= session.report.expires_at:
            return  # nobody would vouch for it; the next session will
        if whole:
            self._due_ms = now_ms + self._every_ms
        try:
            self._keep(look, session, taken_at)
        except (AffiantError, ValueError) as error:
            _LOG.warning("facts are not kept: %s", error)
            return
        self._known |= violated

    def _keep(self, look: Look, session: Session, taken_at: int) -> None:
        facts, left_out = _bounded(look.facts)
        queries = self._bundle.queries
        record = FactRecord(
            device=session.report.device,
            taken_at=taken_at,
            chain=self._chain,
            sequence=self._sequence + 1,
            previous=self._previous,
            rules=self._bundle.used,
            reference=look.reference,
            facts=facts,
            origins={
                name: f"query {query_identity(queries[name])}"
                if name in queries
                else f"fact {FACTS[name].version if name in FACTS else 0}"
                for name in facts
            },
            left_out=left_out,
            digest=b"",
        )
        message = sign_fact_record(
            record,
            session_report=session.response.session_report,
            key=session.key,
            certificates=session.response.certificates,
        )
        content = write_kept(message, recipient=self._recipient, challenge=session.challenge.digest)
        self._launcher.ask(Keep(content))
        self._sequence += 1
        self._previous = parse_sign1(message, name="fact record", max_size=len(message)).digest


def _bounded(facts: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the facts that fit into one record, and the names of the largest ones, which do not."""
    sizes = {name: len(json.dumps(fact).encode()) for name, fact in facts.items()}
    kept = dict(facts)
    left_out: list[str] = []
    while kept and (sum(sizes[name] for name in kept) > MAX_FACTS // 2 or len(pack_facts(kept)) > MAX_PACKED):
        largest = max(kept, key=lambda name: sizes[name])
        del kept[largest]
        left_out.append(largest)
    return kept, tuple(left_out)
