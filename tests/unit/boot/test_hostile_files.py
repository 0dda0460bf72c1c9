"""Whatever stands in a file, reading it ends in a value or in a MalformedError."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.appraisal.key_names import certificate_title
from affiant.boot.evidence import read_boot_evidence
from affiant.boot.pcr_values import parse_pcr_values
from affiant.boot.text import printable
from affiant.model.errors import MalformedError
from affiant.tpm.image_load import untrusted_image_path

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["pcrs", "sha256", "0", "event_logs", "quote", "Log", "Raw", "PCRs", "AK"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_any_octets_are_pcr_values_or_malformed(content: bytes) -> None:
    with contextlib.suppress(MalformedError):
        parse_pcr_values(content)


@given(JSON)
def test_any_json_is_pcr_values_or_malformed(value: object) -> None:
    with contextlib.suppress(MalformedError):
        parse_pcr_values(json.dumps({"pcrs": value}).encode())


@given(value=st.dictionaries(st.sampled_from(["event_logs", "pcrs", "quote", "Log", "Quote", "AK"]), JSON))
def test_any_json_is_a_bundle_or_malformed(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "bundle.json"
    path.write_text(json.dumps(value))
    with contextlib.suppress(MalformedError):
        read_boot_evidence(str(path))


@given(st.binary(max_size=300))
def test_names_never_raise(octets: bytes) -> None:
    assert isinstance(untrusted_image_path(octets), str)
    assert certificate_title(octets).isprintable()


@given(st.text())
def test_printable_is_printable(text: str) -> None:
    assert printable(text).isprintable()
