"""The launcher and courier channels: each message round trips, each bent one is refused."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from affiant.model.errors import MalformedError
from affiant.model.evidence import QuoteEvidence
from affiant.wire import cbor, courier, keys
from affiant.wire import secure_world as sw
from affiant.wire.cbor import Item

POINT = keys.point_of(ec.derive_private_key(0x77, ec.SECP256R1()).public_key())
QUOTE = QuoteEvidence(b"attest", b"signature", b"public", ((0, b"\x00" * 32), (17, b"\x11" * 32)))
EXCHANGES: list[tuple[sw.Request[object], object]] = [
    (sw.Record(), b"record"),
    (sw.Generation(), 3),
    (sw.EnclaveReportFor(b"c" * 32, POINT, b"h" * 32, 7), b"report"),
    (sw.Endorsement(), None),
    (sw.Endorsement(), sw.EndorsementOfTpm((b"leaf", b"ca"), b"ek", b"ak")),
    (sw.Activate(b"blob", b"secret"), b"s" * 32),
    (sw.Quote(b"x" * 32, (0, 17)), QUOTE),
    (sw.Cpus(), ("RAX=0", "RAX=1")),
    (sw.DeviceState(), sw.MachineState(("RAX=0", "RAX=1"), b"QEVM")),
    (sw.Pause(), None),
    (sw.Resume(), None),
    (sw.Keep(b"record"), None),
    (sw.Remember(3, b"x" * sw.MOST_REMEMBERED), None),
    (sw.Remembered(), b""),
    (sw.Remembered(), b"x" * sw.MOST_REMEMBERED),
    (sw.Copy(((0, 1), (7, 3)), True), sw.Copied(("RAX=0",), b"QEVM", (5, 9))),
    (sw.Copy(((1 << 30, sw.MOST_COPIED_PAGES),), False), sw.Copied(("RAX=0",), b"", ())),
    (sw.ForgetCopy(), None),
]


def over_the_wire(item: Item) -> Item:
    return cbor.decode(cbor.encode(item), max_size=1 << 21)


@pytest.mark.parametrize(("request_", "result"), EXCHANGES)
def test_exchanges_round_trip(request_: sw.Request[object], result: object) -> None:
    assert sw.read_request(over_the_wire(sw.write_request(request_))) == request_
    assert sw.read_answer(request_, over_the_wire(sw.write_answer(request_, result))) == result


@pytest.mark.parametrize("kind", list(sw.FailureKind))
def test_failures_round_trip(kind: sw.FailureKind) -> None:
    item = over_the_wire(sw.write_failure(kind, "m" * 300))
    assert sw.read_answer(sw.Cpus(), item) == sw.Failure(kind, "m" * 256)


@pytest.mark.parametrize(
    "item",
    [
        None,
        [],
        ["record"],
        ["record", {}, 1],
        ["format-disk", {}],
        [1, {}],
        ["record", []],
        ["record", {1: 1}],
        ["enclave-report", {}],
        ["enclave-report", {1: b"c" * 31, 2: POINT, 3: b"h" * 32, 4: 1}],
        ["enclave-report", {1: b"c" * 32, 2: b"\x04" + bytes(64), 3: b"h" * 32, 4: 1}],
        ["enclave-report", {1: b"c" * 32, 2: POINT, 3: b"h" * 31, 4: 1}],
        ["enclave-report", {1: b"c" * 32, 2: POINT, 3: b"h" * 32, 4: -1}],
        ["enclave-report", {1: b"c" * 32, 2: POINT, 3: b"h" * 32, 4: 1, 5: 0}],
        ["activate", {1: b"", 2: b"secret"}],
        ["activate", {1: b"blob", 2: bytes(5000)}],
        ["quote", {1: b"x" * 31, 2: [0]}],
        ["quote", {1: b"x" * 32, 2: []}],
        ["quote", {1: b"x" * 32, 2: [24]}],
        ["quote", {1: b"x" * 32, 2: [1, 0]}],
        ["quote", {1: b"x" * 32, 2: [1, 1]}],
        ["quote", {1: b"x" * 32, 2: [True]}],
        ["keep", {}],
        ["keep", {1: b""}],
        ["keep", {1: "text"}],
        ["keep", {1: bytes((1 << 20) + 1)}],
        ["remember", {1: 1}],
        ["remember", {1: 1, 2: b""}],
        ["remember", {1: -1, 2: b"x"}],
        ["remember", {1: 1, 2: bytes(sw.MOST_REMEMBERED + 1)}],
        ["remember", {1: 1, 2: b"x", 3: 0}],
        ["remembered", {1: 1}],
        ["copy", {1: []}],
        ["copy", {1: [], 2: 1}],
        ["copy", {1: [1], 2: False}],
        ["copy", {1: [1, 0], 2: False}],
        ["copy", {1: [-1, 1], 2: False}],
        ["copy", {1: [1 << 40, 1], 2: False}],
        ["copy", {1: [0, sw.MOST_COPIED_PAGES + 1], 2: False}],
        ["copy", {1: [0, 1] * (sw.MOST_RUNS + 1), 2: False}],
    ],
)
def test_bent_requests_are_refused(item: Item) -> None:
    with pytest.raises(MalformedError, match="launcher request"):
        sw.read_request(item)


QUOTE_ITEM: dict[int, Item] = {1: b"attest", 2: b"signature", 3: b"public", 4: {0: bytes(32), 17: bytes(32)}}


@pytest.mark.parametrize(
    ("request_", "item"),
    [
        (sw.Record(), [0]),
        (sw.Record(), [0, b""]),
        (sw.Record(), [0, b"record", 1]),
        (sw.Record(), [2, b"record"]),
        (sw.Record(), [1, "angry", "message"]),
        (sw.Record(), [1, "refused"]),
        (sw.Record(), [1, "refused", "m" * 257]),
        (sw.Record(), [1, "refused", "m\nm"]),
        (sw.Generation(), [0, -1]),
        (sw.Endorsement(), [0, {1: [], 2: b"ek"}]),
        (sw.Endorsement(), [0, {1: [b"c"] * 5, 2: b"ek", 3: b"ak"}]),
        (sw.Quote(b"x" * 32, (0,)), [0, QUOTE_ITEM]),
        (sw.Quote(b"x" * 32, (0, 4, 17)), [0, QUOTE_ITEM]),
        (sw.Quote(b"x" * 32, (0, 17)), [0, {**QUOTE_ITEM, 4: {0: bytes(32), 17: bytes(31)}}]),
        (sw.Quote(b"x" * 32, (0, 17)), [0, {**QUOTE_ITEM, 4: {0: bytes(32), 99: bytes(32)}}]),
        (sw.Quote(b"x" * 32, (0, 17)), [0, {**QUOTE_ITEM, 5: 1}]),
        (sw.Cpus(), [0, []]),
        (sw.Cpus(), [0, [1]]),
        (sw.Cpus(), [0, ["x"] * 513]),
        (sw.Copy((), False), [0, {1: ["x"], 2: b""}]),
        (sw.Copy((), False), [0, {1: [], 2: b"", 3: []}]),
        (sw.Copy((), False), [0, {1: ["x"], 2: b"", 3: [-1]}]),
        (sw.Copy((), False), [0, {1: ["x"], 2: b"", 3: [0] * 1025}]),
        (sw.ForgetCopy(), [0, 1]),
        (sw.DeviceState(), [0, {1: [], 2: b"x"}]),
        (sw.DeviceState(), [0, {1: ["x"], 2: b""}]),
        (sw.DeviceState(), [0, {1: ["x"], 2: bytes(sw.LONGEST_STREAM + 1)}]),
        (sw.DeviceState(), [0, {1: ["x"], 2: b"x", 3: 1}]),
        (sw.Activate(b"blob", b"secret"), [0, bytes(65)]),
        (sw.Pause(), [0, True]),
        (sw.Remember(1, b"x"), [0, b"x"]),
        (sw.Remembered(), [0, None]),
        (sw.Remembered(), [0, "text"]),
        (sw.Remembered(), [0, bytes(sw.MOST_REMEMBERED + 1)]),
    ],
)
def test_bent_answers_are_refused(request_: sw.Request[object], item: Item) -> None:
    with pytest.raises(MalformedError, match="launcher answer"):
        sw.read_answer(request_, item)


def test_an_answer_of_another_type_is_misuse() -> None:
    with pytest.raises(ValueError, match="no result"):
        sw.write_answer(sw.Record(), "text")  # type: ignore[arg-type]


MESSAGES = [
    courier.Post(1, "/v1/challenge", b""),
    courier.PostAnswer(1, 200, b"body"),
    courier.PostAnswer(2, 0, b""),
    courier.Ask(3, b"n" * 32, "gate.example"),
    courier.Show(3, b"passport"),
    courier.Decline(4, "no session yet"),
    courier.Fetch(5, "metadata/timestamp.json", 1 << 14),
    courier.Fetch(6, "targets/" + "0a" * 32 + ".web-1.rules", courier.MAX_BODY),
    courier.FetchAnswer(6, 200, b"rules"),
    courier.FetchAnswer(6, 0, b""),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_courier_messages_round_trip(message: courier.CourierMessage) -> None:
    assert courier.read_message(over_the_wire(courier.write_message(message))) == message


@pytest.mark.parametrize(
    "item",
    [
        None,
        {},
        [],
        [0, 1, "/v1", b""],
        [6, 1, "/v1", b""],
        [6, 1, "metadata/timestamp.json"],
        [6, 1, "metadata/timestamp.json", courier.MAX_BODY + 1],
        [6, 1, "metadata/timestamp.json", -1],
        [7, 1, 600, b""],
        [7, 1, 200, bytes(courier.MAX_BODY + 1)],
        [8, 1, 200, b""],
        [1, 1, "/v1"],
        [1, 1, "/v1", b"", 0],
        [1, -1, "/v1", b""],
        [1, 1 << 32, "/v1", b""],
        [1, 1, "v1", b""],
        [1, 1, "//other.example/v1", b""],
        [1, 1, "/v1 HTTP/1.1\r\nHost: other", b""],
        [1, 1, "/v\u00fc", b""],
        [1, 1, "/v1", bytes(courier.MAX_BODY + 1)],
        [2, 1, 600, b""],
        [2, 1, "200", b""],
        [3, 1, b"n" * 31, "gate"],
        [3, 1, b"n" * 32, "g" * 257],
        [4, 1, b""],
        [5, 1, None],
        [3, 1, b"n" * 32, "gate\n"],
        [5, 1, "no session\0"],
    ],
)
def test_bent_courier_messages_are_refused(item: Item) -> None:
    with pytest.raises(MalformedError, match="courier message"):
        courier.read_message(item)


def test_reasons_of_more_than_one_line_are_told_in_one() -> None:
    """An error's words may have lines, or come from a relay: the channel that tells them goes on."""
    item = over_the_wire(courier.write_message(courier.Decline(4, "no session:\nstatus\x1b")))
    assert courier.read_message(item) == courier.Decline(4, "no session: status?")
    item = over_the_wire(sw.write_failure(sw.FailureKind.REFUSED, "refused:\r\nno\0"))
    assert sw.read_answer(sw.Record(), item) == sw.Failure(sw.FailureKind.REFUSED, "refused:  no?")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/metadata/timestamp.json",
        "metadata/timestamp.json\n",
        "metadata/timestamp.json?x=1",
        "metadata/../../etc/passwd",
        "metadata/%2e%2e/timestamp.json",
        "metadata/root.json",
        "metadata/0.root.json",
        "metadata/01.root.json",
        "metadata/1234567890.root.json",
        "metadata/1.mirrors.json",
        "targets/web.rules",
        "targets/" + "0A" * 32 + ".web.rules",
        "targets/" + "0a" * 32 + ".../web.rules",
        "targets/" + "0a" * 32 + ".web/rules",
        "targets/" + "0a" * 32 + ".web.json",
        "metadata/\u0661.root.json",
    ],
)
def test_nothing_but_files_of_a_rules_repository_is_fetched(path: str) -> None:
    """A monitor that was taken over cannot make the relay ask a server for anything else."""
    with pytest.raises(MalformedError, match="courier message"):
        courier.read_message([6, 1, path, 100])
