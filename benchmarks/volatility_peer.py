"""Runs inside Volatility's own environment: one listing at a time, told on stdin, its figures told on stdout.

Arguments: the RAM file, a folder with symbol files, a folder for caches. The answer to the name of a listing
is a JSON object: seconds of CPU time of the first run (layers found, plugin made) or of a repeat in this
process, and the rows that it listed, as text; "anew" before the name makes a run the first again. Nothing
of Affiant is imported here.
"""

from __future__ import annotations

import json
import logging
import sys
import time

import volatility3.plugins
import volatility3.symbols
from volatility3 import framework
from volatility3.framework import automagic, constants, contexts, interfaces, plugins

logging.disable(logging.CRITICAL)

_LISTINGS = {
    "modules": "linux.lsmod.Lsmod",
    "system calls": "linux.malware.check_syscall.Check_syscall",
    "interrupts": "linux.malware.check_idt.Check_idt",
    "hidden code": "linux.malware.hidden_modules.Hidden_modules",
    "tasks": "linux.pslist.PsList",
}


def main() -> None:
    """Answer until stdin ends."""
    ram, symbols, caches = sys.argv[1:4]
    constants.OFFLINE = True
    constants.CACHE_PATH = caches
    constants.SQLITE_CACHE_PATH = caches + "/identifier.cache"
    volatility3.symbols.__path__.insert(0, symbols)
    constants.SYMBOL_BASEPATHS.insert(0, symbols)
    framework.require_interface_version(2, 0, 0)
    framework.import_files(volatility3.plugins, True)
    found = framework.list_plugins()
    made: dict = {}
    print("ready", flush=True)
    for line in sys.stdin:
        name = line.strip().removeprefix("anew ")
        started = time.process_time()
        if line.startswith("anew "):
            made.pop(name, None)
        if name not in made:
            made[name] = construct(found[_LISTINGS[name]], ram)
        rows = listed(made[name])
        print(json.dumps({"seconds": time.process_time() - started, "rows": rows}), flush=True)


def construct(plugin, ram: str):
    """Return a plugin with the layers and symbols that Volatility found for it by itself."""
    context = contexts.Context()
    context.config["automagic.LayerStacker.single_location"] = "file://" + ram
    chosen = automagic.choose_automagic(automagic.available(context), plugin)
    return plugins.construct_plugin(
        context, chosen, plugin, "plugins", None, interfaces.plugins.FileHandlerInterface
    )


def listed(plugin) -> list[str]:
    """Run a plugin and return each of its rows."""
    rows: list[str] = []

    def visit(node, _accumulator):
        rows.append(" ".join(str(value) for value in node.values))
        return

    plugin.run().populate(visit, None)
    return rows


if __name__ == "__main__":
    main()
