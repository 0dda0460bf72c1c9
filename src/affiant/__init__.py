"""Runtime attestation for Linux virtual machines.

See ARCHITECTURE.md for the map; `affiant.model` for the words.
"""

__version__ = "0.1.0"
