"""Settings that are refused: each is named by its path, at once, and no secret is shown."""

from pathlib import Path

import pytest

from plugin.config.sources import load
from plugin.errors import ConfigInvalid
from tests.support.sources import Host, problems, write


@pytest.mark.parametrize("text", ["abc", "", "1_0", "nan", "inf", "0", "-1", "1e999", "9" * 5000, "true"])
def test_a_number_that_is_none_or_out_of_bounds_is_refused(environ: dict[str, str], text: str) -> None:
    environ["AGENTIC_SYNC_PRESENCE_REFRESH_S"] = text
    if text:
        assert problems(environ).keys() == {"presence.refresh_s"}
    else:
        assert load(environ).presence.refresh_s == 300


@pytest.mark.parametrize(
    ("name", "text", "path"),
    [
        ("AGENTIC_SYNC_SYNC_ENABLED", "maybe", "sync.enabled"),
        ("AGENTIC_SYNC_QUEUE_MAX_RECORDS", "1.5", "queue.max_records"),
        ("AGENTIC_SYNC_LOG_LEVEL", "loud", "log.level"),
        ("AGENTIC_SYNC_BINDINGS", "a,b", "bindings"),
        ("AGENTIC_SYNC_BINDINGS", "[" * 100_000, "bindings"),
        ("AGENTIC_SYNC_BINDINGS", '["\udcff"]', "bindings"),
        ("AGENTIC_SYNC_BINDINGS", "{}", "bindings"),
        ("AGENTIC_SYNC_BINDINGS", '[{"agent_id": "a"}]', "bindings[0].guild_node_id"),
        ("AGENTIC_SYNC_PLATFORM_ALLOW_HOSTS", "[1]", "platform.allow_hosts[0]"),
        ("AGENTIC_SYNC_AGENT_ID", "a\nb", "agent_id"),
        ("AGENTIC_SYNC_AGENT_ID", "caf\udce9", "agent_id"),
        ("AGENTIC_SYNC_AGENT_ID", "a" * 256, "agent_id"),
    ],
)
def test_a_wrong_text_in_the_environment_names_key_and_variable(
    environ: dict[str, str], name: str, text: str, path: str
) -> None:
    found = problems(environ | {name: text})
    assert found.keys() == {path}
    assert f"environment {name}" in found[path]


def test_an_unknown_name_of_ours_in_the_environment_is_refused_with_the_nearest(environ: dict[str, str]) -> None:
    found = problems(environ | {"AGENTIC_SYNC_PRESENCE_INTERVAL": "5", "AGENTIC_SYNC_ZZ": ""})
    assert found.keys() == {"AGENTIC_SYNC_PRESENCE_INTERVAL", "AGENTIC_SYNC_ZZ"}
    assert "AGENTIC_SYNC_PRESENCE_INTERVAL_S" in found["AGENTIC_SYNC_PRESENCE_INTERVAL"]


def test_unknown_keys_are_refused_by_path_with_the_nearest(environ: dict[str, str]) -> None:
    path = write(environ, "[sync]\nbatch_record = 5")
    found = problems(
        environ,
        {
            "platfrom": {},
            "presence": {"intervall_s": 5},
            "bindings": [{"agent_id": "a", "guild_node_id": "g", "chanel_id": "c"}],
        },
    )
    assert found.keys() == {"platfrom", "presence.intervall_s", "bindings[0].chanel_id", "sync.batch_record"}
    assert "platform" in found["platfrom"]
    assert "presence.interval_s" in found["presence.intervall_s"]
    assert "channel_id" in found["bindings[0].chanel_id"]
    assert "sync.batch_records" in found["sync.batch_record"]
    assert f"file {path}" in found["sync.batch_record"]


def test_every_wrong_path_of_every_source_is_named_at_once(environ: dict[str, str]) -> None:
    path = write(environ, "limits = 5\n[queue]\nmax_bytes = 0\nmax_records = 1979-05-27\n[log]\nlevel = []")
    environ["AGENTIC_SYNC_SHUTDOWN_GRACE_S"] = "x"
    found = problems(
        environ,
        {
            "sync": {"enabled": 1, "batch_records": 10**18, "batch_bytes": float("inf")},
            "platform": {"timeout_s": True, "allow_hosts": {}, "base_url": ""},
            "presence": None,
            "host": {"log_method": None, "timeout_s": []},
            "bindings": "a",
            "identities": [5, {"agent_id": "a", "api_key": "x", "api_key_env": "y"}],
            "fabric": {"presence_path": "/no/user"},
        },
    )
    host = {
        *("sync.enabled", "sync.batch_records", "sync.batch_bytes", "platform.timeout_s", "platform.allow_hosts"),
        *("platform.base_url", "presence", "host.log_method", "host.timeout_s", "bindings", "identities[0]"),
        *("identities[1].api_key_env", "fabric.presence_path"),
    }
    file = {"limits", "queue.max_bytes", "queue.max_records", "log.level"}
    assert found.keys() == host | file | {"shutdown_grace_s"}
    assert all(found[key].endswith("(host)") for key in host)
    assert all(found[key].endswith(f"(file {path})") for key in file)


def test_a_wrong_value_is_wrong_even_where_another_source_overrides_it(environ: dict[str, str]) -> None:
    assert problems(environ | {"AGENTIC_SYNC_LOG_LEVEL": "info"}, {"log": {"level": 5}}).keys() == {"log.level"}


def test_a_secret_is_in_no_text_however_wrong_it_is_given(environ: dict[str, str]) -> None:
    write(environ, 'api_key = "s3cr3t"\n[identities]\napi_key = "s3cr3t"\n[platform]\napi_key = ["s3cr3t"]')
    environ |= {
        "AGENTIC_SYNC_IDENTITIES": '[{"agent_id": "a", "api_key": "s3cr3t"',
        "AGENTIC_SYNC_LOG_LEVEL": "s3cr3t",
        "AGENTIC_SYNC_PLATFORM_PROXY": "ftp://user:s3cr3t@proxy",
        "AGENTIC_SYNC_PLATFORM_BASE_URL": "https://user:s3cr3t@platform",
    }
    host = {
        "platform": "s3cr3t",
        "identities": [{"agent_id": 5, "api_key": "s3cr3t"}],
        "fabric": {"center_url": "s3cr3t"},
    }
    with pytest.raises(ConfigInvalid) as caught:
        load(environ, host)
    assert len(caught.value.problems) >= 9
    assert "s3cr3t" not in str(caught.value)
    assert "s3cr3t" not in repr(caught.value.problems)


@pytest.mark.parametrize("digits", [1234567, 12.34567])
def test_a_secret_without_quotes_is_in_no_text_either(environ: dict[str, str], digits: float) -> None:
    host = {"platform": {"api_key": digits}, "identities": [{"agent_id": "a", "api_key": digits}]}
    found = problems(environ, host)
    assert found.keys() == {"platform.api_key", "identities[0].api_key"}
    assert str(digits) not in str(found)


def test_a_key_with_a_dot_is_not_its_own_nearest(environ: dict[str, str]) -> None:
    found = problems(environ, {"platform.timeout_s": 5})
    assert found.keys() == {"platform.timeout_s"}
    assert "nearest" not in found["platform.timeout_s"]


def test_a_ca_file_must_exist_and_a_proxy_be_a_url(environ: dict[str, str], tmp_path: Path) -> None:
    for section in ("platform", "fabric"):
        for proxy in ("ftp://x", "x", "http://", "http://x:0", "http://x:99999", "http://[x"):
            assert problems(environ, {section: {"proxy": proxy}}).keys() == {f"{section}.proxy"}
        for nowhere in (str(tmp_path), "x" * 5000, "a\0b"):
            assert problems(environ, {section: {"ca_file": nowhere}}).keys() == {f"{section}.ca_file"}
        host = {section: {"proxy": "http://user:password@x:1", "ca_file": "~/config.toml"}}
        assert getattr(load(environ, host), section).ca_file == str(tmp_path / "config.toml")


def test_endpoints_must_keep_the_rules_of_endpoints(environ: dict[str, str]) -> None:
    for section, name in (("platform", "base_url"), ("fabric", "center_url")):
        for url in ("http://example.org", "ftp://example.org", "https://a@example.org", "https://169.254.1.1", "x"):
            assert problems(environ, {section: {name: url}}).keys() == {f"{section}.{name}"}
        assert load(environ, {section: {name: "http://127.0.0.1:1"}})
        assert load(environ, {section: {name: "http://example.org", "allow_insecure_http": True}})
        host: Host = {section: {name: "https://example.org", "allow_hosts": ["other"]}}
        assert problems(environ, host).keys() == {f"{section}.{name}"}
    found = problems(environ | {"AGENTIC_SYNC_PLATFORM_BASE_URL": "x"}, {"platform": {"base_url": "https://y"}})
    assert "AGENTIC_SYNC_PLATFORM_BASE_URL" in found["platform.base_url"]


def test_the_default_endpoint_is_judged_too(environ: dict[str, str]) -> None:
    found = problems(environ, {"platform": {"allow_hosts": ["example.org"]}})
    assert found["platform.base_url"].endswith("(default)")


@pytest.mark.parametrize("path", ["p/{user_id}", "/p/{user}", "/p/{user_id} x", "/p/{user_id}?x", "/p/{user_id}\n", ""])
def test_a_presence_path_must_be_a_path_with_the_user(environ: dict[str, str], path: str) -> None:
    assert problems(environ, {"fabric": {"presence_path": path}}).keys() == {"fabric.presence_path"}


def test_an_agent_has_one_identity(environ: dict[str, str]) -> None:
    identities = [{"agent_id": "a"}, {"agent_id": "b"}, {"agent_id": "a"}]
    found = problems(environ, {"identities": identities})
    assert found.keys() == {"identities[2].agent_id"}
    assert found["identities[2].agent_id"].endswith("(host)")


def test_a_key_is_given_one_way_in_one_place(environ: dict[str, str]) -> None:
    assert problems(environ, {"platform": {"api_key": "x", "api_key_file": "y"}}).keys() == {"platform.api_key_file"}
    environ |= {"AGENTIC_SYNC_PLATFORM_API_KEY_ENV": "X", "AGENTIC_SYNC_PLATFORM_API_KEY_FILE": "y"}
    assert problems(environ).keys() == {"platform.api_key_file"}
