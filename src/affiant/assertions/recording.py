"""Recordings: facts of a real look at a guest, with the verdict that they must lead to.

A recording is a JSON file beside the script, named `<script>.<case>.json`:

    {"about":    where the facts come from, one or two sentences,
     "outcome":  "holds", "violated", "not applicable" or "inconclusive",
     "subjects": the subjects of all findings, in order,
     "facts":    fact name to fact; an answer to a query is called script.query}

Facts that were recorded for no script in particular are the same without outcome and subjects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from affiant.assertions.engine import Engine
from affiant.model.errors import MalformedError, SetupError
from affiant.model.outcome import AssertionResult, Outcome

__all__ = [
    "Recording",
    "read_facts",
    "read_recording",
    "recorded_facts_text",
    "recording_text",
    "recordings_beside",
    "replay",
    "write_recording",
]

_MOST_BYTES: Final = 16 * 1024 * 1024
_KEYS: Final = {"about", "outcome", "subjects", "facts"}
_FACTS_KEYS: Final = {"about", "facts"}


@dataclass(frozen=True, slots=True)
class Recording:
    """Facts with the verdict that one script must reach on them. Unverified: anyone can write one."""

    script: str
    case: str
    about: str
    outcome: Outcome
    subjects: tuple[str, ...]
    facts: Mapping[str, object]


def read_recording(path: Path) -> Recording:
    """Return the recording in a file.

    Raises `MalformedError` if it is none, or over 16 MiB, and `SetupError` if it cannot be read.
    """
    script, _, case = path.name.removesuffix(".json").partition(".")
    content = _json_object(path)
    if content.keys() != _KEYS:
        raise MalformedError(
            f"{path.name} is no recording: it has other keys than {', '.join(sorted(_KEYS))}"
        )
    about, outcome, subjects, facts = (content[key] for key in ("about", "outcome", "subjects", "facts"))
    if (
        not isinstance(about, str)
        or outcome not in [member.value for member in Outcome]
        or not isinstance(subjects, list)
        or not all(isinstance(subject, str) for subject in subjects)
        or not isinstance(facts, dict)
    ):
        raise MalformedError(f"{path.name} is no recording: a value has the wrong type")
    return Recording(script, case, about, Outcome(outcome), tuple(subjects), facts)


def read_facts(path: Path) -> Mapping[str, object]:
    """Return facts alone, from a file of fact name to fact or from a recording.

    Raises `MalformedError` if it holds none, or over 16 MiB.
    """
    content = _json_object(path)
    facts = content["facts"] if content.keys() in (_KEYS, _FACTS_KEYS) else content
    if not isinstance(facts, dict):
        raise MalformedError(f"{path.name} holds no facts")
    return facts


def write_recording(folder: Path, recording: Recording) -> Path:
    """Write a recording where `recordings_beside` finds it, and return its path."""
    path = folder / f"{recording.script}.{recording.case}.json"
    path.write_text(recording_text(recording), "utf-8")
    return path


def recording_text(recording: Recording) -> str:
    """Return a recording as it stands in a file; the same facts give the same text."""
    content: dict[str, object] = {
        "about": recording.about,
        "outcome": recording.outcome.value,
        "subjects": list(recording.subjects),
        "facts": dict(recording.facts),
    }
    return _text(content)


def recorded_facts_text(about: str, facts: Mapping[str, object]) -> str:
    """Return facts as `read_facts` reads them from a file, with a word about where they come from."""
    return _text({"about": about, "facts": dict(facts)})


def recordings_beside(script: Path) -> tuple[Recording, ...]:
    """Return all recordings that lie beside a script's file, in the order of their cases."""
    name = script.name.removesuffix(".star")
    return tuple(read_recording(path) for path in sorted(script.parent.glob(f"{name}.*.json")))


def replay(engine: Engine, recording: Recording) -> tuple[AssertionResult, tuple[str, ...]]:
    """Judge a recording by its script; return the verdict and in what it differs from the stated one.

    Raises `ValueError` if the engine's bundle has no such script.
    """
    (result,) = engine.judge(recording.facts, only=[recording.script])
    differences = []
    if result.outcome is not recording.outcome:
        reason = f" ({result.reason})" if result.reason else ""
        differences.append(f"expected {recording.outcome.value}, found {result.outcome.value}{reason}")
    subjects = tuple(finding.subject for finding in result.findings)
    if subjects != recording.subjects:
        differences.append(f"expected findings {list(recording.subjects)}, found {list(subjects)}")
    return result, tuple(differences)


def _text(content: dict[str, object]) -> str:
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    # What a guest calls itself may hold halves of characters, which no file can: as for scripts.
    return text.encode("utf-8", "replace").decode()


def _json_object(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            encoded = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}") from None
    if len(encoded) > _MOST_BYTES:
        raise MalformedError(f"{path.name} is larger than {_MOST_BYTES} bytes")
    try:
        content = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{path.name} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise MalformedError(f"{path.name} is no JSON object")
    return content
