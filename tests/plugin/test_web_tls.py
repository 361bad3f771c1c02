"""Which servers and proxies the client believes."""

import os
import shutil
import ssl
from pathlib import Path

import pytest

from plugin.errors import ConfigInvalid
from plugin.loopback.platform import LoopbackPlatform
from plugin.web import Reach, Web, tls_context
from tests.support.certificates import CA_FILE, server_tls
from tests.support.client import TOKEN, ask, no_answer, opened


async def test_a_certificate_of_an_unknown_authority_is_refused_before_anything_is_sent() -> None:
    async with LoopbackPlatform(tls=server_tls("loopback")) as platform, opened() as web:
        failure = await no_answer(ask(web, platform))
        assert failure.cause == "tls"
        assert "ca_file" in str(failure)
        assert platform.arrivals == []


async def test_an_authority_of_ones_own_is_trusted_by_file() -> None:
    async with LoopbackPlatform(tls=server_tls("loopback")) as platform, opened(Reach(ca_file=CA_FILE)) as web:
        assert (await ask(web, platform)).status == 200
        assert (await web.request("GET", platform.url.replace("127.0.0.1", "localhost"))).status == 404


async def test_a_certificate_for_another_name_is_refused() -> None:
    async with LoopbackPlatform(tls=server_tls("elsewhere")) as platform, opened(Reach(ca_file=CA_FILE)) as web:
        assert (await no_answer(ask(web, platform))).cause == "tls"
        assert platform.arrivals == []


async def test_a_server_without_tls_is_told_apart() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        failure = await no_answer(web.request("GET", platform.url.replace("http:", "https:"), token=TOKEN))
        assert failure.cause == "tls"
        assert platform.arrivals == []


def test_tls_is_verified_new_enough_and_shared() -> None:
    for context in (tls_context(None), tls_context(CA_FILE)):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert tls_context(CA_FILE) is tls_context(CA_FILE)
    assert tls_context(None) is not tls_context(CA_FILE)


def test_a_file_of_authorities_that_changed_is_read_anew(tmp_path: Path) -> None:
    copy = tmp_path / "ca.pem"
    shutil.copy(CA_FILE, copy)
    before = tls_context(str(copy))
    os.utime(copy, (1, 1))
    assert tls_context(str(copy)) is not before


@pytest.mark.parametrize("text", [None, "", "not a certificate"])
def test_a_file_of_authorities_that_cannot_be_used_is_a_config_error(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigInvalid) as caught:
        Web(Reach(ca_file=str(path)))
    assert caught.value.path == "ca_file"


@pytest.mark.parametrize("url", ["nonsense", "ftp://h", "socks5://h:1", "http:///x", "http://me:pa55word@h:port"])
def test_a_proxy_that_cannot_be_used_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        Web(Reach(proxy=url))
    assert caught.value.path == "proxy"
    assert "pa55word" not in str(caught.value)
