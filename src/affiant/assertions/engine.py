"""The engine: facts in, verdicts out, whatever a script or a fact does to the worker."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from affiant.assertions.bundle import Bundle
from affiant.assertions.language import FOLD, LANGUAGE
from affiant.assertions.limits import DEFAULT_LIMITS, Limits
from affiant.assertions.script import Script
from affiant.assertions.verdict import inconclusive, not_applicable, verdict
from affiant.assertions.worker import Worker, WorkerDied
from affiant.model.errors import UnavailableError
from affiant.model.outcome import AssertionResult, Outcome
from affiant.model.query import ValueQuery

__all__ = ["Engine", "judge"]

_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


@dataclass(slots=True)
class _Kept:
    """A verdict that holds, the facts that it follows from, and for how many rounds more it may stand."""

    texts: tuple[bytes | None, ...]
    result: AssertionResult
    rounds: int


class Engine:
    """Judges facts by the scripts of one bundle at a time; keeps one worker between rounds.

    Not to be shared between threads. Close it, or use it with `with`.
    """

    def __init__(self, bundle: Bundle, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self._bundle = bundle
        self._limits = limits
        self._worker: Worker | None = None
        self._rounds = 0
        # Scripts that a worker did not survive compiling, although it did when the bundle was made.
        self._broken: dict[str, str] = {}
        self._kept: dict[str, _Kept] = {}

    def judge(
        self, facts: Mapping[str, object], *, only: Collection[str] | None = None
    ) -> tuple[AssertionResult, ...]:
        """Return one verdict for each script (or those named in `only`), in the bundle's order.

        `facts` maps a fact's name to what JSON can say of it, or to {"unavailable": reason}; answers
        to queries are among them, as `script.query` (see `Script.asked`), and may be
        {"absent": reason}: unless the query is optional, its script is not applicable then. The same
        facts give the same verdicts. A script is inconclusive, and the others are not affected, if a
        fact it reads is missing, unavailable or beyond the limits, or if the script fails, breaks a
        limit or ends the worker. Never raises for anything a script or a fact does.

        A script sees its facts and nothing else, so the same bytes give the same verdict: one that holds
        is not asked for again while they stay the same, for a number of rounds drawn by lot up to
        `kept_rounds`. A verdict of any other kind is never kept.
        """
        return _Round(self, facts, self._chosen(only)).verdicts()

    def use(self, bundle: Bundle) -> None:
        """Judge by another bundle from the next round on; nothing that the former concluded is kept."""
        self.close()
        self._bundle = bundle
        self._broken = {}
        self._kept = {}

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
            self._rounds = 0

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def bundle(self) -> Bundle:
        """The bundle that this engine judges by."""
        return self._bundle

    def _ready_worker(self, deadline: float) -> Worker:
        """Return a worker that has compiled the bundle, a new one where the last is gone.

        Raises `UnavailableError` where none can be started.
        """
        if self._worker is not None and not self._worker.alive:
            self.close()  # ended between two rounds (the host was short of memory): no script's fault
        while self._worker is None:
            worker = Worker(self._limits)
            pending = [script for script in self._bundle.scripts if script.name not in self._broken]
            sources = [(script.name, script.source) for script in pending]
            request = {"load": sources, "language": LANGUAGE, "fold": FOLD}
            try:
                for answer in worker.ask(request, [], len(sources), deadline=deadline):
                    script = pending.pop(0)
                    if "error" in answer:
                        self._broken[script.name] = str(answer["error"])
            except WorkerDied as death:
                if not pending or time.monotonic() >= deadline:
                    raise UnavailableError(death.reason) from death
                self._broken[pending[0].name] = death.reason
                continue
            except BaseException:
                worker.close()
                raise
            self._worker = worker
        return self._worker

    def _drop_if_spent(self, usage: Mapping[str, object]) -> None:
        """Replace a worker that has used much of its life, so that no round inherits its state."""
        # Not by its resident size: ru_maxrss survives execve, and would count our own memory.
        self._rounds += 1
        cpu = usage.get("cpu_seconds")
        worn = self._rounds >= self._limits.life_rounds
        if worn or not isinstance(cpu, int | float) or cpu >= self._limits.life_cpu_seconds:
            self.close()

    def _chosen(self, only: Collection[str] | None) -> list[Script]:
        if only is None:
            return list(self._bundle.scripts)
        unknown = set(only) - {script.name for script in self._bundle.scripts}
        if unknown:
            raise ValueError(f"not in the bundle {self._bundle.name}: {', '.join(sorted(unknown))}")
        return [script for script in self._bundle.scripts if script.name in only]


class _Round:
    """One round of judging: what is decided, what is still open, which facts are usable."""

    def __init__(self, engine: Engine, facts: Mapping[str, object], scripts: Sequence[Script]) -> None:
        self._engine = engine
        self._deadline = time.monotonic() + engine._limits.round_seconds
        self._scripts = scripts
        self._decided: dict[str, AssertionResult] = {}
        self._texts: dict[str, bytes] = {}
        self._unusable: dict[str, str] = {}
        self._reads = {script.name: script.reads for script in scripts}
        room = engine._limits.facts_bytes
        asked = {name: query for script in scripts for name, query in script.asked.items()}
        # Facts first: what one script asks for must not leave others without what all of them share.
        for name in [*sorted({fact for script in scripts for fact in script.facts}), *sorted(asked)]:
            text = _encoded(name, facts, min(room, engine._limits.fact_bytes))
            if isinstance(text, bytes):
                self._texts[name] = text
                room -= len(text)
            else:
                self._unusable[name] = text
        for script in scripts:
            self._decide_if_absent(script, facts)
            self._decide_as_before(script)

    def _decide_as_before(self, script: Script) -> None:
        kept = self._engine._kept.get(script.name)
        if kept is None or script.name in self._decided:
            return
        if kept.rounds > 0 and None not in kept.texts and kept.texts == self._texts_of(script):
            kept.rounds -= 1
            self._decided[script.name] = kept.result
        else:
            del self._engine._kept[script.name]

    def _texts_of(self, script: Script) -> tuple[bytes | None, ...]:
        return tuple(self._texts.get(name) for name in self._reads[script.name].values())

    def _keep(self, script: Script, result: AssertionResult) -> None:
        most = self._engine._limits.kept_rounds
        if result.outcome is Outcome.HOLDS and most:
            rounds = 1 + secrets.randbelow(most)  # not all scripts in one round, and not when one expects it
            self._engine._kept[script.name] = _Kept(self._texts_of(script), result, rounds)

    def _decide_if_absent(self, script: Script, facts: Mapping[str, object]) -> None:
        for name, query in script.asked.items():
            optional = query.reading.optional if isinstance(query, ValueQuery) else query.optional
            answer = facts.get(name)
            if not optional and isinstance(answer, Mapping) and "absent" in answer:
                self._decided[script.name] = not_applicable(script, str(answer["absent"]))
                return

    def verdicts(self) -> tuple[AssertionResult, ...]:
        # Each pass ends with a verdict for all, or with one more script decided or fact ruled out.
        while pending := self._pending():
            try:
                self._ask(pending)
            except UnavailableError as error:
                self._decide_all(pending, str(error))
            except BaseException:
                self._engine.close()  # mid-conversation, the worker's next answer would be the wrong one
                raise
        return tuple(self._decided[script.name] for script in self._scripts)

    def _pending(self) -> list[Script]:
        pending = []
        for script in self._scripts:
            if script.name in self._decided:
                continue
            blind = next((name for name in self._reads[script.name].values() if name in self._unusable), None)
            if blind is not None:
                self._decided[script.name] = inconclusive(script, self._unusable[blind])
            elif script.name in self._engine._broken:
                self._decided[script.name] = verdict(script, {"error": self._engine._broken[script.name]})
            else:
                pending.append(script)
        if pending and time.monotonic() >= self._deadline:
            self._decide_all(pending, "no time was left in this round")
            return []
        return pending

    def _decide_all(self, scripts: Sequence[Script], reason: str) -> None:
        for script in scripts:
            self._decided.setdefault(script.name, inconclusive(script, reason))

    def _ask(self, pending: Sequence[Script]) -> None:
        worker = self._engine._ready_worker(self._deadline)
        tasks = [script for script in pending if script.name not in self._engine._broken]
        names = sorted({name for script in tasks for name in self._reads[script.name].values()})
        request = {
            "judge": [[script.name, list(self._reads[script.name].items())] for script in tasks],
            "facts": names,
        }
        blobs = [self._texts[name] for name in names]
        turns: list[str | Script] = [*names, *tasks]
        done = 0
        try:
            for answer in worker.ask(request, blobs, len(turns) + 1, deadline=self._deadline):
                if done == len(turns):
                    self._engine._drop_if_spent(answer)
                else:
                    self._take(turns[done], answer)
                done += 1
        except WorkerDied as death:
            self._engine.close()
            if done < len(turns):
                self._blame(turns[done], death.reason)

    def _take(self, turn: str | Script, answer: Mapping[str, object]) -> None:
        if isinstance(turn, Script):
            # A script whose fact was not decoded is decided by the fact's own reason.
            if not any(name in self._unusable for name in self._reads[turn.name].values()):
                result = self._decided[turn.name] = verdict(turn, answer)
                self._keep(turn, result)
        elif "error" in answer:
            self._unusable[turn] = f"the fact {turn} cannot be decoded: {answer['error']}"

    def _blame(self, turn: str | Script, reason: str) -> None:
        if isinstance(turn, Script):
            self._decided.setdefault(turn.name, inconclusive(turn, reason))
        else:
            self._unusable[turn] = f"the fact {turn} cannot be decoded: {reason}"


def judge(
    bundle: Bundle,
    facts: Mapping[str, object],
    *,
    limits: Limits = DEFAULT_LIMITS,
) -> tuple[AssertionResult, ...]:
    """Judge once, with a worker of its own; see `Engine.judge`."""
    with Engine(bundle, limits=limits) as engine:
        return engine.judge(facts)


def _encoded(name: str, facts: Mapping[str, object], most: int) -> bytes | str:
    """Return the fact as JSON, or the reason why scripts cannot read it.

    Keys are sorted, so that a recording replays in the order of the original; a lone surrogate
    (file names and module names can hold any byte) becomes a question mark.
    """
    if name not in facts:
        return f"the fact {name} is missing"
    fact = facts[name]
    if not isinstance(fact, Mapping):
        return f"the fact {name} is no JSON object"
    if "unavailable" in fact:
        return f"{name} is unavailable: {fact['unavailable']}"
    try:
        text = _ENCODER.encode(dict(fact)).encode("utf-8", "replace")
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        return f"the fact {name} cannot be said in JSON: {error}"
    if len(text) > most:
        return f"the fact {name} has {len(text)} bytes, at most {most} are read"
    return text
