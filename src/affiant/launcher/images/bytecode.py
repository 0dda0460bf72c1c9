"""Compiles Python files to bytecode that is the same on every machine.

`python -m affiant.launcher.images.bytecode` reads JSON lines `[source, target, name]` on standard input
and writes each `target`. `name` is the file's path inside the image, for tracebacks. The files are
unchecked hash-based (PEP 552): the image is read-only and measured as a whole, so nothing needs to be
compared with the source again. They are written in marshal version 2, because later versions let object
reference counts show.
"""

from __future__ import annotations

import importlib.util
import json
import marshal
import sys
from pathlib import Path

__all__ = ["compile_file", "main"]

_UNCHECKED_HASH = (1).to_bytes(4, "little")
_MARSHAL_VERSION = 2


def compile_file(source: bytes, *, name: str) -> bytes | None:
    """Return the content of the `.pyc` file, or None for a source that is not valid Python."""
    try:
        code = compile(source, name, "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError):
        return None  # some packages carry templates or files for other versions
    header = importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH + importlib.util.source_hash(source)
    return header + marshal.dumps(code, _MARSHAL_VERSION)


def main() -> int:
    """Compile what standard input lists."""
    for line in sys.stdin:
        source, target, name = json.loads(line)
        if (compiled := compile_file(Path(source).read_bytes(), name=name)) is not None:
            Path(target).write_bytes(compiled)
    return 0


if __name__ == "__main__":
    sys.exit(main())
