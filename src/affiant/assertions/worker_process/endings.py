"""Exit codes of a worker process, for itself and for its parent."""

from typing import Final

__all__ = ["OUT_OF_MEMORY", "PANIC"]

PANIC: Final = 70
"""Something happened that is not an evaluator's own error: EX_SOFTWARE of sysexits.h."""
OUT_OF_MEMORY: Final = 71
"""Memory that the limits do not grant was asked for: EX_OSERR."""
