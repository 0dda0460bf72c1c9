from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.tpm.swtpm import SoftwareTpm


@pytest.fixture(scope="session")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    """A real TPM of its own for this run; tests leave no transient object behind."""
    machine = SoftwareTpm(tmp_path_factory.mktemp("tpm"))
    machine.make()
    try:
        machine.start()
        yield machine
    finally:
        machine.stop()
