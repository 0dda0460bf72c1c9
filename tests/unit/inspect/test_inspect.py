"""`affiant inspect`: pages for people, JSON for programs, and no judgement."""

from __future__ import annotations

import argparse
import io
import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from affiant.inspect import commands
from affiant.inspect.look import Look
from affiant.inspect.pages import PAGES, render
from affiant.inspect.registers import read_register_listings
from affiant.kernel.facts.registry import FACTS, Unavailable, collect
from affiant.model.errors import SetupError, UnavailableError
from tests.unit.kernel.bpf_world import BpfWorld
from tests.unit.kernel.synthetic_guest import MODULE_AREA, SYMBOLS, SYSCALL_TABLE, SyntheticGuest, registers

rich_console = pytest.importorskip("rich.console", reason="rich is an optional dependency")


def look_of(guest: SyntheticGuest) -> Look:
    return Look("lab", collect(guest.open(), FACTS, now=0), "")


def printed(look: Look, page: str, *, terminal: bool = False) -> str:
    out = io.StringIO()
    render(look, page, rich_console.Console(file=out, width=160, force_terminal=terminal))
    return out.getvalue()


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    commands.register(parser.add_subparsers(required=True))
    arguments = parser.parse_args(["inspect", *argv])
    code: int = arguments.run(arguments)
    return code


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (
            "overview",
            ["6.1.0-synthetic", "65,536 bytes, 5 changed at patch sites, 0 unexplained", "found by idt"],
        ),
        ("text", ["ftrace", "compared"]),
        ("syscalls", ["sys_call_table", "table"]),
        ("modules", ["first", "valid", "live"]),
        ("executable", ["module first", "no code", "judged"]),
        ("bpf", ["BPF programs on the kernel's list: 0, links: 0", "places looked through"]),
        ("tracing", ["tracepoints", "functions called"]),
        ("tasks", ["shell", "1000"]),
        ("cpus", ["vCPU 0", "_text+0x0", "0x80050033"]),
    ],
)
def test_each_page_shows_what_was_seen(page: str, words: list[str]) -> None:
    text = printed(look_of(SyntheticGuest()), page)
    for word in words:
        assert word in text


class _Saved:
    """The fact `system_registers` of one vCPU, with a deviation."""

    def to_json(self) -> dict[str, Any]:
        deviation = {"cpu": 0, "topic": "t", "subject": "LSTAR", "expected": "entry", "found": "nobody's"}
        return {
            "age_ms": 3,
            "registers": [{"cpu": 0, "lstar": "0xabc", "spec_ctrl": None}],
            "unread": {"per-CPU data": "no reference"},
            "checked": {"system calls": 1},
            "deviations": [deviation],
        }


def test_registers_that_qemu_saves_are_shown_with_what_is_odd_of_them() -> None:
    look = look_of(SyntheticGuest())
    text = printed(Look("lab", {**look.facts, "system_registers": _Saved()}, ""), "cpus")
    for word in (
        "vCPU 0, as saved",
        "3 ms ago",
        "0xabc",
        "not told",
        "not known: no reference",
        "LSTAR",
        "nobody's",
    ):
        assert word in text
    assert "not available: nobody had QEMU" in printed(look, "cpus")


def test_tampering_is_shown_where_it_is() -> None:
    guest = SyntheticGuest()
    guest.poke(guest.physical(SYMBOLS["victim"]) + 0x10, b"\xe9\1\2\3\4")
    guest.word(guest.physical(SYSCALL_TABLE), guest.running("victim"))
    look = look_of(guest)
    assert "victim+0x10" in printed(look, "text")
    assert "5 unexplained" in printed(look, "overview")
    assert "sys_call_table[0]" in printed(look, "syscalls")


def test_code_of_nobody_is_shown_with_its_instructions() -> None:
    guest = SyntheticGuest()
    guest.map(MODULE_AREA + 0x10_0000, 0x140_0000, 4096, executable=True)
    guest.poke(0x140_0000, bytes.fromhex("0f22c0c3"))
    text = " ".join(printed(look_of(guest), "executable").split())
    assert "belongs to nobody" in text
    assert "mov cr0,rax" in text


def test_programs_are_shown_with_what_they_can_do_and_where_they_are_used() -> None:
    world = BpfWorld()
    text = " ".join(printed(look_of(world.guest), "bpf").split())
    for word in ("watcher", "xdp", "1000", "writes user memory", "fentry: victim"):
        assert word in text
    world.guest.word(world.slot, 0)
    text = " ".join(printed(look_of(world.guest), "bpf").split())
    assert "on no list" in text
    assert hex(world.program) in text


def test_colour_is_for_terminals_only() -> None:
    look = look_of(SyntheticGuest())
    assert "\x1b[" not in printed(look, "modules")
    assert "\x1b[" in printed(look, "modules", terminal=True)


def test_names_from_the_guest_cannot_drive_the_terminal() -> None:
    guest = SyntheticGuest()
    guest.poke(guest.tasks[0] + 0x50, b"\x1b[2J[red]x\0\0\0\0\0")
    text = printed(look_of(guest), "tasks")
    assert "\x1b" not in text
    assert "\\x1b[2J[red]x" in text


@pytest.mark.parametrize("page", [page for page in PAGES if page != "cpus"])
def test_what_is_not_available_is_said_with_its_reason(page: str) -> None:
    facts = {name: Unavailable("the moon is full") for name in PAGES[page].facts}
    assert "not available: the moon is full" in printed(Look("lab", dict(facts), ""), page)


def test_without_a_kernel_the_registers_and_the_reason_are_shown() -> None:
    whole = look_of(SyntheticGuest())
    look = Look("lab", {"cpus": whole.facts["cpus"]}, "the guest is still in firmware")
    text = printed(look, "overview")
    assert "the guest is still in firmware" in text
    assert "vCPU 0" in text
    assert look.to_json()["kernel"] == "not seen"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--ram", "x"],
        ["--vm", "a", "--ram", "x"],
        ["--ram", "/nothing", "--qmp", "q", "--reference", "r"],
    ],
)
def test_an_unusable_target_is_refused_with_a_hint(argv: list[str]) -> None:
    with pytest.raises(SetupError):
        run(*argv)


def test_a_machine_that_does_not_exist_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFIANT_HOME", str(tmp_path))
    with pytest.raises(SetupError, match="no virtual machine"):
        run("--vm", "nothing")


def test_no_qemu_on_the_socket_is_an_outside_failure(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="does not answer"):
        read_register_listings(tmp_path / "qmp.sock")


def serve_qmp(path: Path, listings: list[str]) -> threading.Thread:
    """Speak as much QMP as two vCPUs' register listings need."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(1)

    def answer(request: dict[str, Any]) -> Any:
        if request["execute"] == "query-cpus-fast":
            return [{"cpu-index": index} for index in range(len(listings))]
        if request["execute"] == "human-monitor-command":
            assert request["arguments"]["command-line"] == "info registers"
            return listings[request["arguments"]["cpu-index"]]
        return {}

    def serve() -> None:
        connection, _ = server.accept()
        with server, connection:
            version = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}
            greeting = {"QMP": {"version": version, "capabilities": []}}
            connection.sendall(json.dumps(greeting).encode() + b"\n")
            # A client may send commands without a line's end: they end where the JSON value does.
            waiting = ""
            while chunk := connection.recv(4096):
                waiting += chunk.decode()
                while waiting.strip():
                    request, end = json.JSONDecoder().raw_decode(waiting.strip())
                    waiting = waiting.strip()[end:]
                    echo = {"id": request["id"]} if "id" in request else {}
                    reply = {"return": answer(request)} | echo
                    connection.sendall(json.dumps(reply).encode() + b"\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


def test_registers_of_every_vcpu_are_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("qemu.qmp", reason="qemu.qmp is an optional dependency")
    listings = [registers(cr3=0x1000), registers(cr3=0x2000)]
    thread = serve_qmp(tmp_path / "qmp.sock", listings)
    assert read_register_listings(tmp_path / "qmp.sock") == tuple(listings)
    thread.join(60)
    assert not thread.is_alive()
