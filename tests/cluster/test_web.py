"""What uvicorn is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from shoal.cluster.config import ServeConfig
from shoal.cluster.settings import serve_config
from shoal.cluster.web import check_tls
from shoal.engine.errors import ConfigError


def https(folder: Path) -> ServeConfig:
    files = {"ssl_certfile": str(folder / "cert.pem"), "ssl_keyfile": str(folder / "key.pem")}
    return serve_config(files, {})


def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    check_tls(serve_config({}, {}))
    for name, said in (("cert.pem", "cert.pem cannot be read"), ("key.pem", "key.pem cannot be")):
        with pytest.raises(ConfigError, match=said):
            check_tls(https(tmp_path))
        (tmp_path / name).write_text("no certificate")
    with pytest.raises(ConfigError, match="PEM form, without a passphrase"):
        check_tls(https(tmp_path))
