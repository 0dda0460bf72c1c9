"""A small image for tests, and a program inside it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from affiant.launcher.images.image import Image
from affiant.launcher.images.image_files import ImageRecipe
from affiant.launcher.images.sandbox import Sandbox, sandbox_arguments

# As the monitor's, but with few packages: quick to make.
SMALL = ImageRecipe("small", "affiant.model", ("lz4",), ("dev", "tmp", "etc", "references", "passports"))

GIB = 1 << 30


def run_inside(image: Image, code: str, tmp_path: Path, **more: Any) -> tuple[int, str]:
    """Run Python code in the sandbox as the launcher would start a module, and return code and words."""
    runner = "import sys; exec(sys.argv.pop(1))"
    sandbox = Sandbox(image.folder, "x", (), memory_bytes=4 * GIB, **more)
    arguments = sandbox_arguments(sandbox, privileged=os.geteuid() == 0)
    at = arguments.index("-m")
    arguments[at:] = ["-c", runner, code]
    done = subprocess.run(
        arguments,
        pass_fds=sandbox.descriptors,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout + done.stderr
