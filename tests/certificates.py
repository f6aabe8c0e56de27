"""Certificates of our own, good and bad ones, and a server that shows one."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)


@dataclass(frozen=True)
class Certificate:
    """A certificate that signed itself, for 127.0.0.1: PEM files of it and of its key."""

    file: Path
    key: Path

    @classmethod
    def make(cls, folder: Path, *, days: float = 365, name: str = "127.0.0.1") -> "Certificate":
        """Make one that ends in `days` (negative: it has ended)."""
        key = ec.generate_private_key(ec.SECP256R1())
        who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "modelfs-tests")])
        end = datetime.now(UTC) + timedelta(days=days)
        made = (
            x509.CertificateBuilder()
            .subject_name(who)
            .issuer_name(who)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(end - timedelta(days=400 + abs(days)))
            .not_valid_after(end)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(name))]), False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
            .sign(key, SHA256())
        )
        certificate = cls(folder / "tls.crt", folder / "tls.key")
        certificate.file.write_bytes(made.public_bytes(Encoding.PEM))
        certificate.key.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        return certificate


@contextmanager
def serving_tls(certificate: Certificate, target: tuple[str, int] | None = None) -> Iterator[str]:
    """Listen with a certificate, and hand what is said on to `target`, if any; yield HOST:PORT."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.file, certificate.key)
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                conn, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(conn,), daemon=True).start()

    def serve(plain: socket.socket) -> None:
        plain.settimeout(30)
        with plain, contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as s:
            if target is None:
                return
            with socket.create_connection(target, 30) as server:
                back = threading.Thread(target=pump, args=(server, s), daemon=True)
                back.start()
                pump(s, server)
                back.join(30)

    def pump(source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                to.sendall(piece)
            to.shutdown(socket.SHUT_WR)

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()
