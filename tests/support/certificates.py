"""The certificates of the tests as TLS settings for a server."""

import ssl
from pathlib import Path

FOLDER = Path(__file__).parent / "tls"
CA_FILE = str(FOLDER / "ca.pem")


def server_tls(name: str) -> ssl.SSLContext:
    """Serve with the certificate for `loopback` (localhost, 127.0.0.1) or for `elsewhere` (elsewhere.example)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(FOLDER / f"{name}.pem", FOLDER / f"{name}.key")
    return context
