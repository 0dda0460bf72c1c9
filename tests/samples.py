"""Where the evidence samples are: real logs and quotes of other projects, not copied into this one.

The folder is named by AFFIANT_EVIDENCE_SAMPLES, or lies beside the checkout in
`../shared/evidence-samples`. A test that needs one calls `sample`, which skips where it is absent.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

__all__ = ["bundle", "octets", "sample", "samples_folder"]

_CHECKOUT = Path(__file__).resolve().parent.parent


def samples_folder() -> Path | None:
    """The folder of the samples, `None` where there is none."""
    named = os.environ.get("AFFIANT_EVIDENCE_SAMPLES")
    folder = Path(named) if named else _CHECKOUT.parent / "shared" / "evidence-samples"
    return folder if folder.is_dir() else None


def sample(name: str) -> bytes:
    """The bytes of a sample, such as `linux/rhel8-uefi.bin`."""
    folder = samples_folder()
    if folder is None:
        pytest.skip("evidence samples are absent (set AFFIANT_EVIDENCE_SAMPLES to their folder)")
    path = folder / name
    if not path.is_file():
        pytest.skip(f"evidence sample {name} is absent")
    return path.read_bytes()


def bundle(name: str) -> dict[str, Any]:
    """A JSON sample, decoded."""
    decoded: dict[str, Any] = json.loads(sample(name))
    return decoded


def octets(text: str) -> bytes:
    """What base64 text of a sample stands for."""
    return base64.b64decode(text)
