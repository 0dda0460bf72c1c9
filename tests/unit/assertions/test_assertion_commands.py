"""The command line of the assertions, run as a person runs it."""

from __future__ import annotations

import pytest

from affiant.assertions.recording import Recording, read_recording, recordings_beside, write_recording
from affiant.model.errors import MalformedError
from affiant.model.outcome import Outcome

LISTED = {"listed": [{"name": "dummy", "base": "0xffffffffc0000000"}]}


def test_a_recording_reads_back_as_it_was_written(tmp_path):
    recording = Recording(
        "named", "case", "about é", Outcome.INCONCLUSIVE, ("a", "b"), {"fact": {"x": [1, None]}}
    )
    assert read_recording(write_recording(tmp_path, recording)) == recording
    assert recordings_beside(tmp_path / "named.star") == (recording,)
    assert recordings_beside(tmp_path / "name.star") == ()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100000,
        b'{"about": "x"}',
        b'{"about": 1, "outcome": "holds", "subjects": [], "facts": {}}',
        b'{"about": "", "outcome": "fine", "subjects": [], "facts": {}}',
        b'{"about": "", "outcome": [], "subjects": [], "facts": {}}',
        b'{"about": "", "outcome": "holds", "subjects": [1], "facts": {}}',
        b'{"about": "", "outcome": "holds", "subjects": [], "facts": []}',
        b'{"about": "", "outcome": "holds", "subjects": [], "facts": {}, "more": 1}',
        b" " * ((16 << 20) + 1),
    ],
    ids=range(12),
)
def test_what_is_no_recording_is_refused(tmp_path, content):
    path = tmp_path / "a.b.json"
    path.write_bytes(content)
    with pytest.raises(MalformedError, match=r"a\.b\.json"):
        read_recording(path)
