"""Certificates by openssl, strict enough for Python 3.13: CAs with keyUsage, leaves with an authority key identifier."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

_CONFIG = "[req]\ndistinguished_name=dn\nprompt=no\nx509_extensions=ext\n[dn]\n[ext]\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"


def _make(certificate: Path, key: Path, subject: str, days: int, extensions: str, issuer: tuple[Path, Path] | None = None) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".cnf") as config:
        config.write(_CONFIG + extensions)
        config.flush()
        command: list[object] = ["openssl", "req", "-x509", "-config", config.name, "-subj", subject, "-days", days, "-out", certificate]
        command += ["-key", key] if key.exists() else ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key]
        command += ["-CA", issuer[0], "-CAkey", issuer[1]] if issuer else []
        subprocess.run([str(c) for c in command], check=True, capture_output=True)


def authority(certificate: Path, key: Path, name: str, days: int = 3650) -> None:
    """A CA of its own."""
    _make(certificate, key, f"/CN={name}", days, "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign,digitalSignature\n")


def leaf(certificate: Path, key: Path, subject: str, issuer: tuple[Path, Path], names: Iterable[str] = (), days: int = 365) -> None:
    """A certificate for server and client, signed by `issuer` (certificate, key). `names` as openssl writes them: DNS:host, IP:address.

    An existing key is used again.
    """
    extensions = "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n"
    names = list(names)
    if names:
        extensions += "subjectAltName=" + ",".join(names) + "\n"
    _make(certificate, key, subject, days, extensions, issuer)


def key_pair(private: Path, public: Path) -> None:
    for command in (
        ["openssl", "ecparam", "-genkey", "-noout", "-name", "prime256v1", "-out", private],
        ["openssl", "ec", "-in", private, "-pubout", "-out", public],
    ):
        subprocess.run([str(c) for c in command], check=True, capture_output=True)
