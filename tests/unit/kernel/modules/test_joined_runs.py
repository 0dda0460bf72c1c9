"""Pages of modules that follow each other in RAM are kept as one range."""

from __future__ import annotations

import numpy as np
import pytest

from affiant.kernel.modules.joined import _runs


@pytest.mark.parametrize(
    ("frames", "runs"),
    [
        ([], []),
        ([7], [(0, 1)]),
        ([7, 8, 9], [(0, 3)]),
        ([7, 8, 20, 21, 3], [(0, 2), (2, 4), (4, 5)]),
        ([9, 8, 8], [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_runs(frames: list[int], runs: list[tuple[int, int]]) -> None:
    assert list(_runs(np.array(frames, dtype=np.uint64))) == runs
