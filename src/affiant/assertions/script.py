"""An assertion script: one `.star` file, one property of a healthy kernel.

The file is Starlark. It begins with a docstring, sets a header, and defines `check`:

    NAME        the file's name without `.star`: a-z, 0-9 and _, 3 to 64 characters
    VERSION     a whole number, raised with every change of what is claimed
    SENTENCE    one sentence that is true of a healthy kernel
    SEVERITY    "low", "medium", "high" or "critical"
    TECHNIQUE   a MITRE ATT&CK technique such as "T1014", or ""
    MODE        "enforce", or "audit" for a rule that is still on trial
    FACTS       the facts that `check` reads: it is given these and no others
    QUERIES     optional: what else it asks of the kernel, see `affiant.assertions.query`
    check       a function of one argument, a dict from the names of facts and queries to dicts
"""

from __future__ import annotations

import enum
import re
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from affiant.assertions.fault import Fault, fault_of, printable
from affiant.assertions.flaw import Flaw, ScriptError, place_of
from affiant.assertions.language import FOLD, LANGUAGE
from affiant.assertions.limits import DEFAULT_LIMITS, Limits
from affiant.assertions.query import QueryError, parse_queries
from affiant.assertions.worker import Worker, WorkerDied
from affiant.model.outcome import Mode
from affiant.model.query import Query

__all__ = ["Script", "Severity", "describe", "lint", "read_script"]

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{2,63}\Z")
_FACT: Final = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_TECHNIQUE: Final = re.compile(r"(T[0-9]{4}(\.[0-9]{3})?)?\Z")
_DOCSTRING: Final = re.compile(r'(?:[ \t]*(?:#[^\n]*)?\n)*"""([^\\]*?)"""')
_SENTENCE_LENGTH: Final = 200
_MOST_FACTS: Final = 16
_MOST_VERSIONS: Final = (1 << 31) - 1
_E = TypeVar("_E", bound=enum.Enum)


class Severity(enum.Enum):
    """How bad a violation is, for people who must choose what to look at first."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Script:
    """A script that compiles and whose header is complete.

    Made by `read_script` and `describe` alone. It says nothing about who wrote the script, nor that
    `check` answers sensibly. `documentation` is the docstring, dedented.
    """

    name: str
    version: int
    sentence: str
    severity: Severity
    technique: str
    mode: Mode
    facts: tuple[str, ...]
    documentation: str
    source: str
    queries: tuple[Query, ...] = ()

    @property
    def asked(self) -> dict[str, Query]:
        """The queries by the names that their answers go by among facts: `script.query`.

        No built-in fact has a dot in its name, and no two scripts of a bundle have one name.
        """
        return {f"{self.name}.{query.name}": query for query in self.queries}

    @property
    def reads(self) -> dict[str, str]:
        """All that `check` is given: its name there, and the name of the fact or answer."""
        return {fact: fact for fact in self.facts} | {name.rpartition(".")[2]: name for name in self.asked}


def read_script(name: str, source: str, *, limits: Limits = DEFAULT_LIMITS) -> Script:
    """Return the script that `source` is; see `describe`. Raises `ScriptError` if it is none."""
    outcome = describe({name: source}, limits=limits)[name]
    if isinstance(outcome, ScriptError):
        raise outcome
    return outcome


def describe(
    sources: Mapping[str, str],
    *,
    limits: Limits = DEFAULT_LIMITS,
) -> dict[str, Script | ScriptError]:
    """Compile each source in a worker and return what it is, or why it is no script.

    When a `Script` is returned:

    - its source has at most `limits.source_bytes` bytes and compiled within the limits;
    - its header is complete, each value of the kind and form that the module docstring states;
    - its NAME is the key it was given under;
    - its queries are bounded (see `parse_queries`), and none is called as one of its facts;
    - it begins with a docstring, and `check` is a function.

    None of it ran in this process. Raises `UnavailableError` where no worker can be started.
    """
    outcomes: dict[str, Script | ScriptError] = {}
    pending: dict[str, str] = {}
    for name, source in sources.items():
        size = len(source.encode("utf-8", "surrogatepass"))
        if size > limits.source_bytes:
            outcomes[name] = _refusal(name, f"has {size} bytes, at most {limits.source_bytes} are read")
        elif not source.isascii() and any("\ud800" <= char <= "\udfff" for char in source):
            outcomes[name] = _refusal(name, "is not UTF-8")
        else:
            pending[name] = source
    while pending:
        request = {"load": list(pending.items()), "language": LANGUAGE, "fold": FOLD}
        deadline = time.monotonic() + limits.round_seconds
        with Worker(limits) as worker:
            try:
                for answer in worker.ask(request, [], len(pending), deadline=deadline):
                    name, source = next(iter(pending.items()))
                    del pending[name]
                    outcomes[name] = _described(name, source, answer)
            except WorkerDied as death:
                # Answers come in order, so the first without one is the one that ended the worker.
                name = next(iter(pending))
                del pending[name]
                outcomes[name] = _refusal(name, f"does not compile: {death.reason}")
    return {name: outcomes[name] for name in sources}


def lint(source: str, *, limits: Limits = DEFAULT_LIMITS) -> tuple[Flaw, ...]:
    """Return what Starlark's linter and type checker say about `source`.

    Raises `ScriptError` if it cannot be parsed.
    """
    with Worker(limits) as worker:
        request = {"lint": source, "language": LANGUAGE}
        try:
            (answer,) = worker.ask(request, [], 1, deadline=time.monotonic() + limits.round_seconds)
        except WorkerDied as death:
            raise _refusal("the script", f"does not parse: {death.reason}") from None
    if "error" in answer:
        raise _unparsed("the script", source, answer)
    problems = answer["problems"]
    if not isinstance(problems, list):
        raise _refusal("the script", "made the evaluator answer nonsense")
    return tuple(Flaw(int(line), int(column), printable(str(text))) for line, column, text in problems)


def _described(name: str, source: str, answer: Mapping[str, object]) -> Script | ScriptError:
    header = answer.get("header")
    if not isinstance(header, dict):
        return _unparsed(name, source, answer)
    reader = _Header(name, source, header)
    script = reader.script(answer.get("queries"))
    return ScriptError(name, reader.flaws) if reader.flaws else script


class _Header:
    """Reads a header, and goes on after a flaw: whoever mends a script wants to know all of them."""

    def __init__(self, name: str, source: str, values: Mapping[str, object]) -> None:
        self._name = name
        self._source = source
        self._values = values
        self.flaws: list[Flaw] = []

    def script(self, declared: object) -> Script:
        """Return the script; of no use once there are flaws."""
        stated = self._text("NAME", _NAME, "a-z, 0-9 and _, 3 to 64 characters")
        if _NAME.match(stated) and stated != self._name:
            self._flaw(f"NAME must be {self._name!r}, as the file is called", "NAME")
        queries = self._queries(declared)
        docstring = _DOCSTRING.match(self._source)
        if docstring is None or not docstring[1].strip():
            self.flaws.append(
                Flaw(1, 1, 'the script does not begin with a docstring in """, free of backslashes')
            )
        return Script(
            name=self._name,
            version=self._version(),
            sentence=self._sentence(),
            severity=self._member(Severity, "SEVERITY", Severity.LOW),
            technique=self._text("TECHNIQUE", _TECHNIQUE, 'a MITRE ATT&CK technique such as "T1014", or ""'),
            mode=self._member(Mode, "MODE", Mode.AUDIT),
            facts=self._facts(queries, asks=bool(declared)),
            documentation=_dedented(docstring[1]) if docstring else "",
            source=self._source,
            queries=queries,
        )

    def _flaw(self, text: str, *about: str) -> None:
        self.flaws.append(Flaw(*place_of(self._source, *about), printable(text)))

    def _value(self, key: str) -> object:
        """Return a value as it is, or None with a flaw where it is missing or of no sensible kind."""
        value = self._values[key]
        if value is None:
            self._flaw(f"the header sets no {key}", key)
        elif isinstance(value, dict):
            self._flaw(str(value.get("unusable")), key)
            return None
        return value

    def _text(self, key: str, form: re.Pattern[str], wanted: str) -> str:
        value = self._value(key)
        if value is not None and (not isinstance(value, str) or not form.match(value)):
            self._flaw(f"{key} is {wanted}, not {value!r}", key)
        return value if isinstance(value, str) else ""

    def _version(self) -> int:
        value = self._value("VERSION")
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST_VERSIONS:
            return value
        if value is not None:
            self._flaw(f"VERSION is a whole number from 1 on, not {value!r}", "VERSION")
        return 0

    def _sentence(self) -> str:
        value = self._value("SENTENCE")
        if value is not None and (
            not isinstance(value, str)
            or not value.isprintable()
            or not 0 < len(value) <= _SENTENCE_LENGTH
            or value[-1] != "."
        ):
            self._flaw(
                f"SENTENCE is one sentence on one line, of at most {_SENTENCE_LENGTH} characters, "
                "and ends with a dot",
                "SENTENCE",
            )
        return value if isinstance(value, str) else ""

    def _member(self, kind: type[_E], key: str, otherwise: _E) -> _E:
        value = self._value(key)
        try:
            return kind(value)
        except ValueError:
            if value is not None:
                values = ", ".join(repr(member.value) for member in kind)
                self._flaw(f"{key} is one of {values}, not {value!r}", key)
            return otherwise

    def _facts(self, queries: tuple[Query, ...], *, asks: bool) -> tuple[str, ...]:
        value = self._value("FACTS")
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) > _MOST_FACTS:
            self._flaw(f"FACTS is a list of at most {_MOST_FACTS} names", "FACTS")
            return ()
        if not (value or asks):
            self._flaw("FACTS and QUERIES are both empty: there is nothing to look at", "FACTS")
        for index, fact in enumerate(value):
            if not _FACT.match(fact):
                self._flaw(f"FACTS: {fact!r} is no name of a fact", "FACTS", fact)
            if fact in value[:index]:
                self._flaw(f"FACTS names {fact!r} twice", "FACTS", fact)
        for query in queries:
            if query.name in value:
                self._flaw(f"query {query.name} is called as a fact that is read, too", "QUERIES", query.name)
        return tuple(value)

    def _queries(self, declared: object) -> tuple[Query, ...]:
        try:
            return parse_queries(declared)
        except QueryError as error:
            self._flaw(str(error), "QUERIES", *error.about)
            return ()


def _unparsed(name: str, source: str, answer: Mapping[str, object]) -> ScriptError:
    fault: Fault = fault_of(str(answer.get("error")), source)
    return ScriptError(name, [Flaw(fault.line, fault.column or min(fault.line, 1), fault.text)])


def _dedented(docstring: str) -> str:
    first, _, rest = docstring.partition("\n")
    return (first.strip() + "\n" + textwrap.dedent(rest)).strip()


def _refusal(name: str, why: str) -> ScriptError:
    return ScriptError(name, [Flaw(0, 0, why)])
