"""The launcher channel as bytes: how requests and answers are written and read.

A request is `[operation, {argument...}]`, an answer `[0, result]` or `[1, kind, message]`; both
travel in frames (`affiant.wire.frames`), one request at a time. Each request (`wire.launcher_requests`)
names the type of its result, so that `read_answer` returns that type or a `Failure`.
"""

from __future__ import annotations

from typing import TypeVar, cast

from affiant.model.evidence import QuoteEvidence
from affiant.wire.cbor import Item, Key
from affiant.wire.fields import Fields
from affiant.wire.keys import load_point
from affiant.wire.launcher_requests import (
    LONGEST_STREAM,
    MOST_COPIED_PAGES,
    MOST_REMEMBERED,
    MOST_RUNS,
    Activate,
    Copied,
    Copy,
    Cpus,
    DeviceState,
    EnclaveReportFor,
    Endorsement,
    EndorsementOfTpm,
    Failure,
    FailureKind,
    ForgetCopy,
    Generation,
    Keep,
    MachineState,
    Pause,
    Quote,
    Record,
    Remember,
    Remembered,
    Request,
    Resume,
)
from affiant.wire.pcrs import read_pcr_selection, read_pcr_values, write_pcr_values
from affiant.wire.plain_text import plain

__all__ = ["read_answer", "read_request", "write_answer", "write_failure", "write_request"]

_MAX_TPM_STRUCTURE = 4096
_MAX_CERTIFICATE = 8192
_MAX_CERTIFICATES = 4
_MAX_MESSAGE = 1 << 16
_MAX_CPUS = 512
_MAX_CPU_TEXT = 1 << 16
_MAX_KEPT = 1 << 20
_LAST_PAGE = (1 << 40) - 1

ResultT = TypeVar("ResultT")

_OPERATIONS: dict[str, type[Request[object]]] = {
    "record": Record,
    "generation": Generation,
    "enclave-report": EnclaveReportFor,
    "endorsement": Endorsement,
    "activate": Activate,
    "quote": Quote,
    "cpus": Cpus,
    "device-state": DeviceState,
    "pause": Pause,
    "resume": Resume,
    "copy": Copy,
    "forget-copy": ForgetCopy,
    "keep": Keep,
    "remember": Remember,
    "remembered": Remembered,
}
_NAMES = {kind: name for name, kind in _OPERATIONS.items()}


def write_request(request: Request[object]) -> Item:
    """Return the item of a request, for `affiant.wire.frames.encode_frame`."""
    arguments: dict[Key, Item] = {}
    match request:
        case EnclaveReportFor(challenge, session_key, sealing_key, rules_version):
            arguments = {1: challenge, 2: session_key, 3: sealing_key, 4: rules_version}
        case Activate(credential_blob, encrypted_secret):
            arguments = {1: credential_blob, 2: encrypted_secret}
        case Quote(extra_data, pcrs):
            arguments = {1: extra_data, 2: list(pcrs)}
        case Copy(runs, device_state):
            arguments = {1: [number for run in runs for number in run], 2: device_state}
        case Keep(content):
            arguments = {1: content}
        case Remember(generation, content):
            arguments = {1: generation, 2: content}
    return [_NAMES[type(request)], arguments]


def read_request(item: Item) -> Request[object]:
    """Return the request that an item from the channel holds.

    Guaranteed: each argument is there with its size, the session key is a point on P-256, PCR
    indices are 0 to 23 and ascending, pages to copy are within their bounds (not within those of any
    guest). Raises `MalformedError` otherwise.
    """
    parts = Fields.of_array(item, "launcher request", length=2)
    operation = parts.text(0, "operation", maximum=32)
    kind = _OPERATIONS.get(operation)
    if kind is None:
        raise parts.error("operation", "unknown")
    arguments = Fields.of_map(parts.item(1, "arguments"), f"launcher request {operation}")
    request: Request[object]
    if kind is EnclaveReportFor:
        request = EnclaveReportFor(
            challenge=arguments.digest(1, "challenge"),
            session_key=arguments.octets(2, "session key", size=65),
            sealing_key=arguments.octets(3, "sealing key", size=32),
            rules_version=arguments.integer(4, "rules version"),
        )
        load_point(request.session_key, name=f"{arguments.name}: session key")
    elif kind is Activate:
        request = Activate(
            credential_blob=arguments.octets(1, "credential blob", minimum=2, maximum=_MAX_TPM_STRUCTURE),
            encrypted_secret=arguments.octets(2, "encrypted secret", minimum=2, maximum=_MAX_TPM_STRUCTURE),
        )
    elif kind is Quote:
        request = Quote(
            extra_data=arguments.octets(1, "extra data", size=32),
            pcrs=read_pcr_selection(arguments, 2),
        )
    elif kind is Copy:
        request = Copy(_read_runs(arguments), arguments.boolean(2, "device state"))
    elif kind is Keep:
        request = Keep(arguments.octets(1, "record", minimum=1, maximum=_MAX_KEPT))
    elif kind is Remember:
        request = Remember(
            arguments.integer(1, "generation"),
            arguments.octets(2, "content", minimum=1, maximum=MOST_REMEMBERED),
        )
    else:
        request = kind()
    arguments.close()
    return request


def write_answer(request: Request[ResultT], result: ResultT) -> Item:
    """Return the item that answers `request` with `result`."""
    if isinstance(result, EndorsementOfTpm):
        return [0, {1: list(result.ek_certificates), 2: result.ek_public, 3: result.ak_public}]
    if isinstance(result, QuoteEvidence):
        values = write_pcr_values(result.pcrs)
        return [0, {1: result.attest, 2: result.signature, 3: result.ak_public, 4: values}]
    if isinstance(result, Copied):
        return [0, {1: list(result.cpus), 2: result.stream, 3: list(result.roots)}]
    if isinstance(result, MachineState):
        return [0, {1: list(result.cpus), 2: result.stream}]
    if result is None or isinstance(result, (bytes, int, tuple)):
        return [0, result]
    raise ValueError(f"{type(result).__name__} is no result of {type(request).__name__}")


def write_failure(kind: FailureKind, message: str) -> Item:
    """Return the item that says why there is no result, in one line of at most 256 characters."""
    return [1, kind.value, plain(message[:256])]


def read_answer(request: Request[ResultT], item: Item) -> ResultT | Failure:
    """Return the result of `request`, or the failure that the launcher tells.

    Guaranteed: the result has the type and the bounds that belong to this request; a quote's PCRs
    are exactly those asked for. Raises `MalformedError` otherwise.
    """
    name = f"launcher answer to {_NAMES[type(request)]}"
    parts = Fields.of_array(item, name)
    if parts.integer(0, "status", maximum=1):
        word = parts.text(1, "kind", maximum=32)
        if word not in {kind.value for kind in FailureKind}:
            raise parts.error("kind", "unknown")
        failure = Failure(FailureKind(word), parts.text(2, "message"))
        parts.close()
        return failure
    result = _read_result(request, parts)
    parts.close()
    return cast("ResultT", result)


def _read_result(request: Request[object], parts: Fields) -> object:
    match request:
        case Record():
            return parts.octets(1, "launch record", minimum=1, maximum=_MAX_MESSAGE)
        case Generation():
            return parts.integer(1, "generation")
        case EnclaveReportFor():
            return parts.octets(1, "enclave report", minimum=1, maximum=_MAX_MESSAGE)
        case Endorsement():
            endorsement = parts.nullable(parts.map, 1, "endorsement")
            return None if endorsement is None else _read_endorsement(endorsement)
        case Activate():
            return parts.octets(1, "secret", minimum=1, maximum=64)
        case Quote():
            return _read_quote(parts.map(1, "quote"), request.pcrs)
        case Cpus():
            return parts.each(1, "registers", _read_cpu, minimum=1, maximum=_MAX_CPUS)
        case DeviceState():
            return _read_machine_state(parts.map(1, "machine state"))
        case Remembered():
            return parts.octets(1, "content", maximum=MOST_REMEMBERED)
        case Copy():
            return _read_copied(parts.map(1, "copied"))
        case _:
            if parts.item(1, "result") is not None:
                raise parts.error("result", "not null")
            return None


def _read_cpu(registers: Fields, index: int) -> str:
    return registers.lines(index, str(index), maximum=_MAX_CPU_TEXT)


def _read_machine_state(fields: Fields) -> MachineState:
    state = MachineState(
        cpus=fields.each(1, "registers", _read_cpu, minimum=1, maximum=_MAX_CPUS),
        stream=fields.octets(2, "device state", minimum=1, maximum=LONGEST_STREAM),
    )
    fields.close()
    return state


def _read_copied(fields: Fields) -> Copied:
    copied = Copied(
        cpus=fields.each(1, "registers", _read_cpu, minimum=1, maximum=_MAX_CPUS),
        stream=fields.octets(2, "device state", maximum=LONGEST_STREAM),
        roots=fields.each(3, "roots", _read_page, maximum=2 * _MAX_CPUS),
    )
    fields.close()
    return copied


def _read_page(pages: Fields, index: int) -> int:
    return pages.integer(index, str(index), maximum=_LAST_PAGE)


def _read_runs(arguments: Fields) -> tuple[tuple[int, int], ...]:
    numbers = arguments.each(1, "runs", _read_page, maximum=2 * MOST_RUNS)
    runs = tuple(zip(numbers[::2], numbers[1::2], strict=False))
    if len(numbers) % 2 or not all(count for _, count in runs):
        raise arguments.error("runs", "not pairs of a page and how many")
    if sum(count for _, count in runs) > MOST_COPIED_PAGES:
        raise arguments.error("runs", f"more than {MOST_COPIED_PAGES} pages")
    return runs


def _read_certificate(certificates: Fields, index: int) -> bytes:
    return certificates.octets(index, str(index), minimum=1, maximum=_MAX_CERTIFICATE)


def _read_endorsement(fields: Fields) -> EndorsementOfTpm:
    endorsement = EndorsementOfTpm(
        ek_certificates=fields.each(1, "EK certificates", _read_certificate, maximum=_MAX_CERTIFICATES),
        ek_public=fields.octets(2, "EK public", minimum=2, maximum=_MAX_TPM_STRUCTURE),
        ak_public=fields.octets(3, "AK public", minimum=2, maximum=_MAX_TPM_STRUCTURE),
    )
    fields.close()
    return endorsement


def _read_quote(fields: Fields, asked: tuple[int, ...]) -> QuoteEvidence:
    quote = QuoteEvidence(
        attest=fields.octets(1, "attest", minimum=2, maximum=_MAX_TPM_STRUCTURE),
        signature=fields.octets(2, "signature", minimum=2, maximum=_MAX_TPM_STRUCTURE),
        ak_public=fields.octets(3, "AK public", minimum=2, maximum=_MAX_TPM_STRUCTURE),
        pcrs=read_pcr_values(fields, 4),
    )
    if tuple(index for index, _ in quote.pcrs) != asked:
        raise fields.error("PCR values", "not of the PCRs asked for")
    fields.close()
    return quote
