"""P-256 points, COSE_Key and thumbprints."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from affiant.model.errors import MalformedError
from affiant.wire import keys
from affiant.wire.fields import Fields

# RFC 9679, section 6: the example key and its thumbprint.
_RFC9679_POINT = bytes.fromhex(
    "04"
    "65eda5a12577c2bae829437fe338701a10aaa375e1bb5b5de108de439c08551d"
    "1e52ed75701163f7f9e40ddf9f341b3dc9ba860af7e0ca7ca7e9eecd0084d19c"
)
_RFC9679_THUMBPRINT = "496bd8afadf307e5b08c64b0421bf9dc01528a344a43bda88fadd1669da253ec"


def test_the_rfc_thumbprint() -> None:
    assert keys.thumbprint(_RFC9679_POINT).hex() == _RFC9679_THUMBPRINT


def test_keys_round_trip() -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    point = keys.point_of(key)
    assert keys.load_point(point, name="key") == key
    assert keys.read_cose_key(Fields.of_map(keys.cose_key(point), "key")) == point


@pytest.mark.parametrize(
    "point",
    [
        b"",
        _RFC9679_POINT[:-1],
        b"\x02" + _RFC9679_POINT[1:33],
        b"\x05" + _RFC9679_POINT[1:],
        b"\x04" + bytes(64),
    ],
)
def test_points_off_the_curve_are_refused(point: bytes) -> None:
    with pytest.raises(MalformedError, match="session key"):
        keys.load_point(point, name="session key")


@pytest.mark.parametrize(
    "bend",
    [{1: 1}, {1: True}, {-1: 2}, {-2: bytes(32)}, {-2: bytes(31)}, {-3: b""}, {2: b"kid"}, {-4: bytes(32)}],
)
def test_other_cose_keys_are_refused(bend: dict[int, object]) -> None:
    """Another type or curve, a point off the curve, a private key, an optional parameter."""
    key = {**keys.cose_key(_RFC9679_POINT), **bend}
    with pytest.raises(MalformedError):
        keys.read_cose_key(Fields.of_map(key, "key"))  # type: ignore[arg-type]


def test_other_curves_are_misuse() -> None:
    with pytest.raises(ValueError, match="secp384r1"):
        keys.point_of(ec.generate_private_key(ec.SECP384R1()).public_key())
