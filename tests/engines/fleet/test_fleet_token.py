"""Join tokens: there and back, and everything else in one line that tells nothing."""

import base64
import hashlib
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgewise.engines.fleet import certificates
from edgewise.engines.fleet import token as tokens
from edgewise.engines.fleet.token import PREFIX, Token
from edgewise.errors import EdgewiseError

KEY = certificates.new_key()
CA = certificates.certificate_der(certificates.authority(KEY, certificates.utc_now()))
TOKEN = Token(("192.0.2.1:7443", "[2001:db8::1]:7443"), "fleet.example.org:7444", bytes(range(32)), CA)
TEXT = TOKEN.text()


def same(one: Token, other: Token) -> bool:
    return vars(one) == vars(other)


def sealed(rest: bytes, length: int | None = None) -> str:
    """The text of any content, with the length and checksum that it should have."""
    content = tokens.LENGTH.pack(len(rest) + 6 if length is None else length) + rest
    whole = content + hashlib.sha256(content).digest()[:4]
    return PREFIX + base64.urlsafe_b64encode(whole).decode().rstrip("=")


def refusal(text: str) -> str:
    with pytest.raises(EdgewiseError) as caught:
        Token.parse(text)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 200
    assert text[len(PREFIX) + 4 : len(PREFIX) + 24] not in said or len(text) < 40
    return said


# ---- there and back ----


def test_a_token_comes_back() -> None:
    assert same(Token.parse(TEXT), TOKEN)
    assert same(Token.parse(f"  {TEXT}\r\n"), TOKEN)
    assert TEXT.startswith("edgewise1.") and len(TEXT) < 1000
    assert set(TEXT) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


@given(
    st.lists(
        st.sampled_from(["a:1", "fleet.example:443", "[::1]:65535", "10.0.0.1:80", "a" * 248 + ":65535"]),
        min_size=1,
        max_size=8,
    ),
    st.binary(min_size=32, max_size=32),
)
@example(["a" * 248 + ":65535"] * 8, bytes(32))
def test_any_token_comes_back(addresses: list[str], secret: bytes) -> None:
    token = Token(tuple(addresses), addresses[0], secret, CA)
    assert same(Token.parse(token.text()), token) and len(token.text()) <= tokens.LONGEST


def test_the_content_by_hand() -> None:
    token = Token(("a:1",), "b:22", bytes(range(32)), CA)
    rest = bytes(range(32)) + b"\x01" + b"\x03a:1" + b"\x04b:22" + len(CA).to_bytes(2, "little") + CA
    assert token.text() == sealed(rest)


def test_secrets_are_new_and_compared_by_digest() -> None:
    one, other = (Token.create(("a:1",), "b:2", CA) for _ in range(2))
    assert len(one.secret) == 32 and one.secret != other.secret
    assert one.digest == hashlib.sha256(one.secret).digest() == tokens.digest(one.secret)
    assert tokens.matches(one.secret, one.digest) and not tokens.matches(one.secret, other.digest)
    assert not tokens.matches(one.secret, b"")


def test_roots_are_the_authority_as_pem() -> None:
    assert certificates.certificate_der(certificates.read_certificate(TOKEN.roots)) == CA
    assert TOKEN.roots.startswith(b"-----BEGIN CERTIFICATE-----")


def test_a_token_does_not_show_its_secret() -> None:
    for form in (repr(TOKEN), str(TOKEN), f"{TOKEN}"):
        assert repr(TOKEN.secret) not in form and TOKEN.secret.hex() not in form and "\\x" not in form
        assert "192.0.2.1:7443" in form


# ---- pastes that went wrong ----


@pytest.mark.parametrize("left", range(10, len(TEXT), 13))
def test_a_paste_that_was_cut_short_says_so(left: int) -> None:
    assert "cut short" in refusal(TEXT[:left])


@pytest.mark.parametrize("left", range(10))
def test_of_a_prefix_alone_nothing_can_be_said(left: int) -> None:
    assert "begins with edgewise1." in refusal(TEXT[:left])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "begins with edgewise1."),
        ("hello", "begins with edgewise1."),
        (TEXT.upper(), "begins with edgewise1."),
        (TEXT.replace("edgewise1.", "edgewise2."), "of version 2"),
        (TEXT + "A", "1 letters follow its end"),
        (TEXT + TEXT, "only letters, digits"),
        (TEXT[:100] + "\n" + TEXT[100:], "only letters, digits"),
        (TEXT[:100] + "é" + TEXT[101:], "only letters, digits"),
        (TEXT[:100] + "=" + TEXT[101:], "only letters, digits"),
        (TEXT + "A" * 9000, "longer than the 8192 letters"),
        (TEXT + "A" * 1_000_000, "longer than the 8192 letters"),
        (PREFIX + "A" * 100, "letters follow its end"),
        (PREFIX + "A" * 4, "letters follow its end"),
    ],
)
def test_other_texts_say_what_is_wrong(text: str, says: str) -> None:
    assert says in refusal(text)


@given(st.integers(len(PREFIX), len(TEXT) - 1), st.sampled_from("ABCxyz019-_"))
def test_a_letter_that_changed_is_found(place: int, letter: str) -> None:
    changed = TEXT[:place] + letter + TEXT[place + 1 :]
    if changed != TEXT:
        said = refusal(changed)
        # The first letters are the length; the last has bits that stand for nothing.
        assert "changed on its way" in said or not len(PREFIX) + 3 <= place < len(TEXT) - 1


@given(st.one_of(st.text(max_size=200), st.text(max_size=200).map(lambda text: PREFIX + text)))
def test_no_other_text_is_a_token(text: str) -> None:
    with pytest.raises(EdgewiseError):
        Token.parse(text)


# ---- forged: with a length and a checksum that agree ----


@given(st.binary(max_size=700))
def test_forged_content_is_refused(rest: bytes) -> None:
    refusal(sealed(rest))


CONTENT = base64.urlsafe_b64decode(TEXT[len(PREFIX) :] + "==")[2:-4]


@given(st.lists(st.tuples(st.integers(32, len(CONTENT) - 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_forged_fields_are_refused_or_legal(changes: list[tuple[int, int]]) -> None:
    content = bytearray(CONTENT)
    for place, value in changes:
        content[place] = value
    text = sealed(bytes(content))
    try:
        token = Token.parse(text)
    except EdgewiseError as error:
        assert "\n" not in str(error)
        return
    assert token.text() == text  # an address may well be another's


def test_every_cut_of_the_content_is_refused() -> None:
    for end in range(0, len(CONTENT), 7):
        refusal(sealed(CONTENT[:end]))
    refusal(sealed(CONTENT + b"\x00"))


def test_there_is_one_text_for_a_token() -> None:
    """The last letter of a text may have bits that stand for nothing: they are zero."""
    token = next(token for token in _of_all_lengths() if len(token.text()[len(PREFIX) :]) % 4)
    text = token.text()
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other = text[:-1] + letters[letters.index(text[-1]) + 1]
    decoded = [base64.urlsafe_b64decode(form[len(PREFIX) :] + "==") for form in (text, other)]
    assert decoded[0] == decoded[1]
    assert "not in the one form" in refusal(other)


def _of_all_lengths() -> list[Token]:
    made = [Token(("a" * length + ":1",), "b:2", bytes(32), CA) for length in (1, 2, 3)]
    assert all(len(one.text()) < len(other.text()) for one, other in pairwise(made))
    return made


# ---- parts ----


@pytest.mark.parametrize(
    "address",
    [
        *("", "a", "a:", ":1", "a:0", "a:65536", "a:01", "a:+1", "a: 1", "a:\u0661", "a b:1", "a\n:1"),
        *("dns:///a:1", "a/b:1", "unix:/run/x", "-a:1", "a-:1", "a..b:1", "é:1", "a" * 249 + ":1"),
        *("[::1:1", "::1:1", "[fe80::1%eth0]:1", "[x]:1", "[]:1"),
    ],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(EdgewiseError, match="an address is host:port"):
        Token((address,), "a:1", bytes(32), CA)
    with pytest.raises(EdgewiseError, match="an address is host:port"):
        Token(("a:1",), address, bytes(32), CA)


def test_other_parts_that_are_not_legal_are_refused() -> None:
    leaf = certificates.certificate_der(
        certificates.for_device(
            certificates.Issuer(certificates.read_certificate(CA), KEY),
            KEY.public_key(),
            1,
            certificates.utc_now(),
        )
    )
    pem = certificates.certificate_pem(certificates.read_certificate(CA))
    for parts, says in [
        (((), "a:1", bytes(32), CA), "1 to 8 addresses"),
        ((("a:1",) * 9, "a:1", bytes(32), CA), "1 to 8 addresses"),
        ((("a:1",), "a:1", bytes(31), CA), "32 bytes, not 31"),
        ((("a:1",), "a:1", bytes(32), b"x"), "damaged"),
        ((("a:1",), "a:1", bytes(32), bytes(3000)), "at most 2048"),
        ((("a:1",), "a:1", bytes(32), leaf), "no authority"),
        ((("a:1",), "a:1", bytes(32), pem), "DER"),
    ]:
        with pytest.raises(EdgewiseError, match=says):
            Token(*parts)
