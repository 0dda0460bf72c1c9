"""The engine and its worker: isolation, confinement, and life across rounds."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import affiant.assertions.worker as worker_module
from affiant.assertions.bundle import make_bundle
from affiant.assertions.engine import Engine, judge
from affiant.assertions.limits import DEFAULT_LIMITS
from affiant.assertions.worker import Worker
from affiant.assertions.worker_process import confinement
from affiant.model.errors import MalformedError, UnavailableError
from affiant.model.outcome import Outcome

HOLDS = 'return [ok("x")]'
ALWAYS_ASKED = replace(DEFAULT_LIMITS, kept_rounds=0)


def test_a_script_sees_the_facts_it_declares_and_no_others(write):
    body = 'return [bad(",".join(sorted(facts.keys())), "x", "y")]'
    sources = {
        "one": write(body, "one", FACTS='["a"]'),
        "two": write(body, "two", FACTS='["b", "a"]'),
    }
    one, two = judge(make_bundle("test", 1, sources), {"a": {}, "b": {}, "secret": {}})
    assert one.findings[0].subject == "a"
    assert two.findings[0].subject == "a,b"


def test_a_script_cannot_load_facts_or_other_scripts(write):
    for module in ("fact:b", "b", "script", "fold", "json", "other"):
        with pytest.raises(MalformedError, match="there is no module"):
            make_bundle(
                "test",
                1,
                {
                    "one": write(HOLDS, "one", top=f'load("{module}", "value")'),
                    "other": write(HOLDS, "other"),
                },
            )


def test_no_state_passes_from_one_round_to_the_next(write):
    """What a script keeps at its top level is frozen: it cannot remember a guest's last state."""
    source = write('SEEN.append(1)\nreturn [ok("x")]', top="SEEN = []")
    with Engine(make_bundle("test", 1, {"example": source})) as engine:
        for _ in range(2):
            (result,) = engine.judge({"fact": {}})
            assert "Immutable" in result.reason


def test_verdicts_come_in_the_order_of_the_bundle(bundle_of):
    bundle = bundle_of(zebra=HOLDS, ant="fail('x')", mole=HOLDS)
    assert [result.name for result in judge(bundle, {"fact": {}})] == ["ant", "mole", "zebra"]


def test_a_part_of_the_bundle_can_be_judged_again(bundle_of):
    with Engine(bundle_of(one=HOLDS, two=HOLDS)) as engine:
        (result,) = engine.judge({"fact": {}}, only=["two"])
        assert result.name == "two"
        with pytest.raises(ValueError, match="not in the bundle test: three"):
            engine.judge({"fact": {}}, only=["three"])
        assert engine.judge({"fact": {}}, only=[]) == ()


def test_another_bundle_judges_anew_from_the_next_round_on(write):
    """Also a rule of the same name over the same facts: what the former one concluded is not kept."""
    holds = make_bundle("test", 2, {"example": write(HOLDS)})
    violated = make_bundle(
        "test", 3, {"example": write('return [bad("x", "y", "z")]'), "more": write(name="more")}
    )
    broken = make_bundle("test", 4, {"example": write("return [1 // 0]")})
    with Engine(holds) as engine:
        outcomes = []
        for bundle in (holds, violated, broken, holds):
            engine.use(bundle)
            outcomes.append([result.outcome for result in engine.judge({"fact": {}})])
        assert outcomes == [
            [Outcome.HOLDS],
            [Outcome.VIOLATED, Outcome.HOLDS],
            [Outcome.INCONCLUSIVE],
            [Outcome.HOLDS],
        ]


def test_one_worker_serves_many_rounds_and_a_killed_one_is_replaced(bundle_of):
    with Engine(bundle_of(example=HOLDS), limits=ALWAYS_ASKED) as engine:
        engine.judge({"fact": {}})
        first = engine._worker.process_id
        engine.judge({"fact": {}})
        assert engine._worker.process_id == first
        os.kill(first, signal.SIGKILL)
        engine._worker._process.wait(timeout=10)
        (after_death,) = engine.judge({"fact": {}})
        assert after_death.outcome is Outcome.HOLDS
        assert engine._worker.process_id != first


def test_a_worker_killed_during_a_round_costs_its_turn_alone(bundle_of, monkeypatch):
    slow = "x = 9\nfor i in range(40):\n    x = x * x\nreturn [ok('x')]"
    with Engine(bundle_of(one=HOLDS, three=slow, two=HOLDS), limits=ALWAYS_ASKED) as engine:
        engine.judge({"fact": {}}, only=["one"])
        worker = engine._worker

        def ask(*arguments, **keywords):
            answers = Worker.ask(worker, *arguments, **keywords)
            yield next(answers)  # the fact
            yield next(answers)  # the first script
            os.kill(worker.process_id, signal.SIGKILL)
            yield from answers

        monkeypatch.setattr(worker, "ask", ask)
        one, three, two = engine.judge({"fact": {}})
    assert (one.outcome, two.outcome) == (Outcome.HOLDS, Outcome.HOLDS)
    assert (three.outcome, three.reason) == (Outcome.INCONCLUSIVE, "the evaluator was ended by SIGKILL")


@pytest.mark.parametrize("limit", [{"life_rounds": 2}, {"life_cpu_seconds": 0}])
def test_a_worker_that_has_used_much_is_replaced_between_rounds(bundle_of, limit):
    with Engine(bundle_of(example=HOLDS), limits=replace(ALWAYS_ASKED, **limit)) as engine:
        for _ in range(4):
            (result,) = engine.judge({"fact": {}})
            assert result.outcome is Outcome.HOLDS
        assert engine._worker is None


def test_a_large_parent_does_not_wear_its_worker_out(bundle_of):
    """What the parent holds in memory is not the worker's: it serves the next round all the same."""
    ballast = bytes(b"x" * (300 << 20))
    with Engine(bundle_of(example=HOLDS), limits=ALWAYS_ASKED) as engine:
        engine.judge({"fact": {}})
        first = engine._worker
        engine.judge({"fact": {}})
        assert engine._worker is first is not None
    assert ballast


def test_no_process_is_left_behind(bundle_of):
    engine = Engine(bundle_of(example=HOLDS))
    engine.judge({"fact": {}})
    process_id = engine._worker.process_id
    engine.close()
    assert not Path(f"/proc/{process_id}").exists()
    engine.close()


def test_a_worker_ends_when_its_parent_is_gone(bundle_of):
    worker = Worker(DEFAULT_LIMITS)
    worker._socket.close()
    assert worker._process.wait(timeout=10) == 0


def test_an_interrupted_round_does_not_leave_answers_for_the_next(bundle_of, monkeypatch):
    with Engine(
        bundle_of(one='return [bad("one", "x", "y")]', two='return [bad("two", "x", "y")]')
    ) as engine:
        engine.judge({"fact": {}})
        monkeypatch.setattr(engine._worker, "_until", _interrupt_after(engine._worker._until, 2))
        with pytest.raises(KeyboardInterrupt):
            engine.judge({"fact": {}})
        one, two = engine.judge({"fact": {}})
        assert (one.findings[0].subject, two.findings[0].subject) == ("one", "two")


def _interrupt_after(function, calls):
    left = [calls]

    def counted(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return function(*arguments)

    return counted


def test_where_no_worker_starts_everything_is_inconclusive_and_says_so(bundle_of, monkeypatch):
    bundle = bundle_of(one=HOLDS, two=HOLDS)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(UnavailableError, match="does not start: No such file"):
        Worker(DEFAULT_LIMITS)
    for result in judge(bundle, {"fact": {}}):
        assert result.outcome is Outcome.INCONCLUSIVE
        assert "the worker for assertion scripts does not start" in result.reason


def test_a_worker_without_room_to_start_is_unavailable():
    with pytest.raises(UnavailableError, match="does not start") as caught:
        Worker(replace(DEFAULT_LIMITS, memory_bytes=1 << 20))
    assert "address space" in caught.value.hint


def test_missing_starlark_names_the_package(monkeypatch):
    monkeypatch.setattr(worker_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as caught:
        Worker(DEFAULT_LIMITS)
    assert caught.value.name == "starlark"


def test_starlark_never_enters_this_process(bundle_of):
    """A program that judges does not have the evaluator mapped into its own memory."""
    code = (
        "import sys; from affiant.assertions.bundle import packaged_library;"
        "from affiant.assertions.engine import judge; judge(packaged_library(), {});"
        "sys.exit(any('starlark' in line for line in open('/proc/self/maps')) or 'starlark' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_worker_holds_one_descriptor_no_environment_and_no_privileges():
    with Worker(DEFAULT_LIMITS) as worker:
        process = Path(f"/proc/{worker.process_id}")
        if os.access(process / "fd", os.R_OK):  # not dumpable: root alone may look
            assert [entry.name for entry in (process / "fd").iterdir()] == ["0"]
            assert (process / "environ").read_bytes() == b""
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert status["Threads"] == "1"
        limits = (process / "limits").read_text() if os.access(process / "limits", os.R_OK) else ""
        for name in ("Max core file size", "Max file size", "Max processes", "Max open files"):
            assert not limits or limits.split(name)[1].split()[0] == "0"


def test_the_worker_imports_nothing_of_affiant_but_its_own_folder():
    """What a worker does not hold, a script that breaks out of the evaluator does not find."""
    code = (
        f"import sys; sys.path.append({str(Path(confinement.__file__).parents[3])!r})\n"
        "import affiant.assertions.worker_process.main\n"
        "print(*sorted(name for name in sys.modules if name.startswith('affiant')))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    folder = Path(confinement.__file__).parent
    own = {f"{folder.name}.{file.stem}" for file in folder.glob("*.py") if file.stem != "__init__"}
    assert set(done.stdout.split()) <= {
        "affiant",
        "affiant.assertions",
        f"affiant.assertions.{folder.name}",
        *(f"affiant.assertions.{name}" for name in own),
    }
    assert "affiant.assertions.worker_process.main" in done.stdout.split()


# What a process that has taken over the worker might try; each line is one attempt.
_ATTEMPTS = {
    "open": "os.open('/etc/passwd', os.O_RDONLY)",
    "socket": "socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
    "fork": "os.fork()",
    "vfork": "call(58)",
    "clone": "call(56)",
    "clone3": "call(435)",
    "thread": "_thread.start_new_thread(print, ())",
    "execute": "os.execv('/bin/true', ['true'])",
    "signal": "os.kill(os.getppid(), 0)",
    "duplicate": "os.dup(0)",
    "list": "os.listdir('/')",
    "remove": "os.unlink('/nonexistent')",
    "limits": "resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))",
    "code": "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
    "clock": "time.clock_settime(time.CLOCK_REALTIME, 0)",
}


@pytest.mark.parametrize("name", _ATTEMPTS)
def test_a_confined_worker_cannot(name):
    """Run the worker's own confinement, then one attempt: the kernel answers "not permitted"."""
    code = f"""
import _thread, ctypes, json, mmap, os, resource, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def call(number):
    if libc.syscall(number, 0, 0, 0, 0, 0) == -1:
        raise OSError(ctypes.get_errno(), "refused")
sys.path.append({str(Path(confinement.__file__).parents[3])!r})
from affiant.assertions.worker_process.confinement import confine
confine({asdict(DEFAULT_LIMITS)!r})
mmap.mmap(-1, 4096).close()
try:
    {_ATTEMPTS[name]}
    answer = b"done"
except OSError as error:
    answer = str(error.errno).encode()
except (ValueError, RuntimeError):  # how the modules resource and _thread say EPERM
    answer = b"1"
os.write(0, answer)
os._exit(0)
"""
    ours, theirs = socket.socketpair()
    with ours:
        process = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdin=theirs.fileno(), env={})
        theirs.close()
        ours.settimeout(20)
        answer = ours.recv(100)
        assert process.wait(timeout=20) == 0
    assert answer == b"1"  # EPERM


def test_the_filter_kills_calls_of_another_architecture():
    """A 32-bit call (int 0x80) has other numbers: the filter must not read them as its own."""
    program = confinement.system_call_filter()
    allow, kill, deny = 0x7FFF0000, 0x80000000, 0x00050001

    def run(number: int, architecture: int, third: int = 0) -> int:
        words = {0: number, 4: architecture, 32: third}
        accumulator, at = 0, 0
        while True:
            code, if_true, if_false, value = program[at]
            at += 1
            match code:
                case 0x20:
                    accumulator = words[value]
                case 0x15:
                    at += if_true if accumulator == value else if_false
                case 0x35:
                    at += if_true if accumulator >= value else if_false
                case 0x45:
                    at += if_true if accumulator & value else if_false
                case 0x06:
                    return value

    x86_64 = 0xC000003E
    assert run(0, 0x40000003) == kill
    assert run(0x40000000, x86_64) == kill
    assert run(0, x86_64) == run(231, x86_64) == allow
    assert run(9, x86_64, 3) == run(10, x86_64, 3) == allow
    assert run(9, x86_64, 7) == run(10, x86_64, 5) == deny
    allowed = {number for number in range(512) if run(number, x86_64) == allow}
    assert allowed == {
        0,
        1,
        9,
        10,
        11,
        12,
        13,
        14,
        15,
        24,
        25,
        28,
        38,
        39,
        60,
        98,
        131,
        186,
        202,
        228,
        231,
        234,
        318,
    }


def test_a_worker_that_answers_too_much_is_ended(bundle_of, monkeypatch):
    with Worker(replace(DEFAULT_LIMITS, answer_bytes=40)) as worker:
        request = {"lint": "x = [" * 3, "language": ""}
        with pytest.raises(worker_module.WorkerDied, match="answered with"):
            list(worker.ask(request, [], 1, deadline=float("inf")))
        assert not worker.alive


def test_the_same_facts_give_the_same_verdict_bit_for_bit(bundle_of):
    body = 'return [bad(k, str(v), repr(facts)) for k, v in facts["fact"].items()]'
    facts = json.loads(json.dumps({"fact": {f"key{index}": [index, {"a": None}] for index in range(50)}}))
    bundle = bundle_of(example=body)
    assert judge(bundle, facts) == judge(bundle, facts)


def test_a_bundle_has_one_digest_and_every_byte_counts(write):
    def digest(name="b", version=1, **sources):
        return make_bundle(
            name, version, {key: write(name=key, **value) for key, value in sources.items()}
        ).digest

    base = digest(one={}, two={})
    assert base == digest(two={}, one={})
    others = [digest(name="c", one={}, two={}), digest(version=2, one={}, two={}), digest(one={})]
    others.append(digest(one={"body": 'return [ok("y")]'}, two={}))
    assert len({base, *others}) == 5


def test_a_bundle_of_nothing_is_refused():
    with pytest.raises(MalformedError, match="has 0 scripts"):
        make_bundle("test", 1, {})


def test_a_bundle_names_every_script_that_is_none(write):
    with pytest.raises(MalformedError, match=r"one: line 1, column 4: .*; two: the script defines no"):
        make_bundle("test", 1, {"one": "x =", "two": "", "three": write(name="three")})
