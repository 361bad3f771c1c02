import ipaddress
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.endpoint import Reach, check_target, check_url, segment
from plugin.errors import BadEndpoint

ANY = Reach(allow_insecure_http=True)
STRICT = Reach()


def refused(url: str, reach: Reach = STRICT) -> BadEndpoint:
    with pytest.raises(BadEndpoint) as caught:
        check_url(url, reach)
    return caught.value


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://api.example.org", "https://api.example.org"),
        ("https://api.example.org/", "https://api.example.org"),
        ("HTTPS://API.Example.ORG./core/v2/", "https://api.example.org/core/v2"),
        ("https://api.example.org:443/a", "https://api.example.org/a"),
        ("http://localhost:80/a", "http://localhost/a"),
        ("https://api.example.org:8443", "https://api.example.org:8443"),
        ("https://straße.example/x", "https://xn--strae-oqa.example/x"),
        ("https://10.1.2.3/x", "https://10.1.2.3/x"),
        ("https://[2001:DB8:0:0::1]/x", "https://[2001:db8::1]/x"),
        ("https://api.example.org/a b/%2F", "https://api.example.org/a%20b/%2F"),
    ],
)
def test_a_good_url_is_normalised_and_keeps_its_prefix(url: str, normal: str) -> None:
    assert check_url(url, STRICT) == normal
    assert check_url(normal, STRICT) == normal


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080", "http://127.9.9.9", "http://[::1]:8080", "http://localhost", "http://LOCALHOST."]
)
def test_http_is_allowed_to_this_machine(url: str) -> None:
    assert check_url(url, STRICT).startswith("http://")


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.org",
        "http://10.0.0.1",
        "http://localhost.example.org",
        "http://[2001:db8::1]",
        "http://128.0.0.1",
    ],
)
def test_http_to_elsewhere_needs_the_setting(url: str) -> None:
    refused(url)
    assert check_url(url, ANY) == url


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1", "file:///etc/passwd", "ws://h", "//h/x", "h/x", "/x", "", "https:h"]
)
def test_other_schemes_and_parts_of_urls_are_refused(url: str) -> None:
    refused(url, ANY)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[fe80::1]",
        "[::ffff:169.254.169.254]",
        "[::169.254.169.254]",
        "[64:ff9b::169.254.169.254]",
        "[2002:a9fe:a9fe::1]",
        "224.0.0.1",
        "239.255.255.250",
        "255.255.255.255",
        "[ff02::1]",
        "[::ffff:224.0.0.1]",
        "0.0.0.0",
        "0.1.2.3",
        "[::]",
        "[::ffff:0.0.0.0]",
        "１６９.254.169.254",  # noqa: RUF001 - the wide digits are what is tested
    ],
)
def test_link_local_multicast_and_unspecified_addresses_are_refused_in_any_form(host: str) -> None:
    refused(f"https://{host}/x", ANY)


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f000001",
        "127.1",
        "127.0.1",
        "0177.0.0.1",
        "0x7f.0.0.1",
        "127.0.0.01",
        "1.2.3.4.5",
        "256.1.1.1",
        "a.1",
    ],
)
def test_odd_spellings_of_addresses_are_refused(host: str) -> None:
    refused(f"https://{host}/x", ANY)


@pytest.mark.parametrize(
    "url",
    [
        "https://user@h",
        "https://user:pa55@h",
        "https://h\\@evil.example",
        "https://h/?a=b",
        "https://h/?",
        "https://h/#part",
        "https://h:0",
        "https://h:65536",
        "https://h:port",
        "https://h..",
        "https://a..b",
        "https://a b",
        "https://a%2eb",
        "https://a\nb",
        "https://h\r\nX: y",
        f"https://{'a' * 64}.example",
        f"https://{'a.' * 130}example",
        "https://[::1%25eth0]",
        "https://[fe80::1%eth0]",
        "https://[::1",
        "https://[1.2.3.4]",
        "https://",
    ],
)
def test_urls_that_can_be_misread_are_refused(url: str) -> None:
    refused(url, ANY)


@pytest.mark.parametrize("url", ["https://user:pa55word@h", "https://user:pa55word@[bad", "https://h?key=pa55word"])
def test_the_text_of_a_refusal_never_repeats_what_may_be_a_password(url: str) -> None:
    error = refused(url)
    assert "pa55word" not in str(error)
    assert error.__cause__ is None


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://api.example.org", True),
        ("https://API.example.org.", True),
        ("https://a.guilds.example.org", True),
        ("https://a.b.guilds.example.org", True),
        ("https://guilds.example.org", False),
        ("https://evilguilds.example.org", False),
        ("https://sub.api.example.org", False),
        ("https://10.0.0.5", True),
        ("https://10.0.0.6", False),
    ],
)
def test_the_allow_list_holds_exact_hosts_and_suffixes(url: str, *, allowed: bool) -> None:
    reach = Reach(allow_hosts=("API.example.org", ".guilds.example.org", "10.0.0.5"))
    if allowed:
        check_url(url, reach)
    else:
        refused(url, reach)


def test_a_target_keeps_the_end_of_its_path() -> None:
    assert str(check_target("https://h/a/", STRICT)) == "https://h/a/"


@given(st.text())
def test_whatever_the_text_it_is_refused_or_becomes_a_plain_url(text: str) -> None:
    for url in (text, f"https://{text}", f"https://h/{text}"):
        try:
            normal = check_url(url, ANY)
        except BadEndpoint:
            continue
        parts = urlsplit(normal)
        assert parts.scheme in {"http", "https"}
        assert parts.hostname
        assert (parts.username, parts.query, parts.fragment) == (None, "", "")
        assert normal.isascii()
        assert check_url(normal, ANY) == normal


NOWHERE = [ipaddress.IPv4Network(net) for net in ("0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32")]
FORMS = ["{}", "[::ffff:{}]", "[64:ff9b::{}]", "[0:0:0:0:0:FFFF:{}]"]


@given(
    st.one_of(st.ip_addresses(v=4), *(st.ip_addresses(network=str(network)) for network in NOWHERE)),
    st.sampled_from(FORMS),
)
def test_an_ipv4_address_is_judged_alike_in_every_form(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, form: str
) -> None:
    url = f"https://{form.format(address)}"
    if any(address in network for network in NOWHERE):
        refused(url)
    else:
        check_url(url, STRICT)


@given(st.text(min_size=1))
def test_a_segment_is_one_segment_and_reads_back(text: str) -> None:
    try:
        encoded = segment(text)
    except BadEndpoint:
        assert text in {".", ".."} or any("\ud800" <= char <= "\udfff" for char in text)
        return
    assert not set(encoded) & set("/?#\\ ")
    assert encoded.isascii()
    assert unquote(encoded) == text


@pytest.mark.parametrize("text", ["", ".", "..", "\ud800"])
def test_what_cannot_be_a_segment_is_refused(text: str) -> None:
    with pytest.raises(BadEndpoint):
        segment(text)
