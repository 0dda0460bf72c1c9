"""The worker's main loop, called by the one line that its parent starts."""

from __future__ import annotations

import json
import os
import sys
from typing import NoReturn

from affiant.assertions.worker_process.confinement import confine
from affiant.assertions.worker_process.endings import OUT_OF_MEMORY, PANIC
from affiant.assertions.worker_process.evaluator import Evaluator
from affiant.assertions.worker_process.frames import receive, tell

__all__ = ["main"]


def main(starlark_folder: str, limits: str) -> NoReturn:
    """Confine this process, then answer requests until the parent is gone; `limits` is JSON."""
    try:
        _serve(starlark_folder, json.loads(limits))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except SystemExit:
        raise
    except BaseException:  # noqa: BLE001  # the evaluator's panics derive from BaseException
        os._exit(PANIC)


def _serve(starlark_folder: str, limits: dict[str, object]) -> NoReturn:
    sys.path.append(starlark_folder)
    import starlark

    confine(limits)
    evaluator = Evaluator(starlark, limits)
    tell({"ready": True})
    while True:
        request = json.loads(receive())
        if "load" in request:
            evaluator.load(request)
        elif "judge" in request:
            evaluator.judge(request)
        else:
            evaluator.lint(request)
