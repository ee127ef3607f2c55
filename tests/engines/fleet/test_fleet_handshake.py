"""The credentials at work: TLS in this process, then gRPC over a socket."""

import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from fleet_folders import joined

from edgewise.engines.fleet import certificates
from edgewise.engines.fleet.certificates import COORDINATOR, device_of, fingerprint
from edgewise.engines.fleet.identity import Authority, Credentials


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fleet")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority.create(folder / "authority")


@pytest.fixture(scope="module")
def server(authority: Authority) -> Credentials:
    return authority.serve_as()


@pytest.fixture(scope="module")
def device(authority: Authority, folder: Path) -> Credentials:
    return joined(authority, folder / "device", 42)


@pytest.fixture(scope="module")
def foreign(folder: Path) -> tuple[Credentials, Credentials]:
    """The coordinator and a device of another fleet."""
    authority = Authority.create(folder / "foreign")
    return authority.serve_as(), joined(authority, folder / "foreign-device", 42)


# ---- TLS ----


def context(own: Credentials | None, trusted: bytes, serves: bool, folder: Path) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if serves else ssl.PROTOCOL_TLS_CLIENT)
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    made.load_verify_locations(cadata=trusted.decode())
    if own is not None:
        (folder / "key").write_bytes(own.key)
        (folder / "chain").write_bytes(own.chain)
        made.load_cert_chain(folder / "chain", folder / "key")
    return made


def shake(
    server: Credentials, client: Credentials | None, roots: bytes, folder: Path, name: str = COORDINATOR
) -> bytes:
    """A handshake in memory and a word each way: the client's certificate as DER, or ssl.SSLError."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    served = context(server, server.ca, True, folder).wrap_bio(up, down, server_side=True)
    called = context(client, roots, False, folder).wrap_bio(down, up, server_hostname=name)
    waiting = [called.do_handshake, served.do_handshake]
    for _ in range(10):
        for step in list(waiting):
            try:
                step()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(step)
    assert waiting == []
    called.write(b"up")
    assert served.read() == b"up"
    served.write(b"down")
    assert called.read() == b"down"
    certificate = served.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate


def test_coordinator_and_device_trust_each_other(
    server: Credentials, device: Credentials, tmp_path: Path
) -> None:
    seen = shake(server, device, device.ca, tmp_path)
    assert device_of(seen) == 42 and fingerprint(seen) == fingerprint(device.chain)


def test_a_device_without_a_certificate_is_refused(
    server: Credentials, device: Credentials, tmp_path: Path
) -> None:
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake(server, None, device.ca, tmp_path)


def test_a_device_of_another_fleet_is_refused(
    server: Credentials, foreign: tuple[Credentials, Credentials], tmp_path: Path
) -> None:
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake(server, foreign[1], server.ca, tmp_path)


def test_a_coordinator_of_another_fleet_is_refused(
    device: Credentials, foreign: tuple[Credentials, Credentials], tmp_path: Path
) -> None:
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake(foreign[0], device, device.ca, tmp_path)


def test_a_device_cannot_serve(device: Credentials, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake(device, device, device.ca, tmp_path)


def test_the_coordinator_is_no_device(server: Credentials, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake(server, server, server.ca, tmp_path)


def test_a_device_signs_for_nobody(
    server: Credentials, device: Credentials, authority: Authority, folder: Path, tmp_path: Path
) -> None:
    issuer = certificates.Issuer(
        certificates.read_certificate(device.chain), certificates.read_key(device.key, "key")
    )
    key = certificates.new_key()
    made = certificates.for_device(issuer, key.public_key(), 1, certificates.utc_now())
    chain = certificates.certificate_pem(made) + device.chain
    forged = replace(device, key=certificates.key_pem(key), chain=chain)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake(server, forged, device.ca, tmp_path)


def test_the_coordinator_answers_to_its_name_only(
    server: Credentials, device: Credentials, tmp_path: Path
) -> None:
    with pytest.raises(ssl.SSLError, match="Hostname mismatch"):
        shake(server, device, device.ca, tmp_path, name="localhost")


# ---- gRPC ----


class Answers(grpc.GenericRpcHandler):
    """Says who called."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def answer(request: bytes, call: grpc.ServicerContext) -> bytes:
            seen = call.auth_context()
            (name,), (certificate,) = seen["x509_common_name"], seen["x509_pem_cert"]
            return name + b" " + fingerprint(certificate).encode() + b" %d" % device_of(certificate)

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture(scope="module")
def port(server: Credentials) -> Iterator[int]:
    serving = grpc.server(ThreadPoolExecutor(1), handlers=[Answers()])
    credentials = grpc.ssl_server_credentials(
        [(server.key, server.chain)], root_certificates=server.ca, require_client_auth=True
    )
    port = serving.add_secure_port("127.0.0.1:0", credentials)
    serving.start()
    yield port
    serving.stop(None).wait()


def call(port: int, own: Credentials | None, roots: bytes, name: str = COORDINATOR) -> bytes:
    pair = (None, None) if own is None else (own.key, own.chain)
    credentials = grpc.ssl_channel_credentials(roots, *pair)
    options = [("grpc.ssl_target_name_override", name), ("grpc.enable_http_proxy", 0)]
    with grpc.secure_channel(f"dns:///127.0.0.1:{port}", credentials, options) as channel:
        return channel.unary_unary("/fleet/who")(b"", timeout=20)


def test_grpc_knows_the_device_by_its_certificate(port: int, device: Credentials) -> None:
    assert call(port, device, device.ca) == b"device-42 " + fingerprint(device.chain).encode() + b" 42"


@pytest.mark.parametrize("case", ["none", "foreign device", "foreign coordinator", "wrong name"])
def test_grpc_refuses(
    case: str, port: int, device: Credentials, foreign: tuple[Credentials, Credentials]
) -> None:
    arguments = {
        "none": (None, device.ca),
        "foreign device": (foreign[1], device.ca),
        "foreign coordinator": (device, foreign[1].ca),
        "wrong name": (device, device.ca, "localhost"),
    }[case]
    with pytest.raises(grpc.RpcError) as caught:
        call(port, *arguments)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
