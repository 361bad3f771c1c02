import socket
import sys
from pathlib import Path

import pytest

from plugin.config import Binding, Config, Identity, home
from plugin.config.keys import keys, schema, table
from plugin.config.sources import RESTART_ONLY, changed, check_change, explain, load
from plugin.errors import ConfigInvalid
from plugin.secret import Secret
from tests.support.sources import Host, problems, write


def test_without_any_source_the_defaults_are_filled_in(environ: dict[str, str], tmp_path: Path) -> None:
    config = load(environ)
    assert config.agent_id == socket.gethostname()
    assert config.root == str(tmp_path / "Code" / ".core")
    assert config.state_dir == str(tmp_path / "Code" / ".core" / "sync")
    assert (config.platform, config.bindings, config.shutdown_grace_s) == (Config().platform, (), 5.0)


def test_a_source_comes_before_the_next_one_key_by_key(environ: dict[str, str]) -> None:
    write(environ, 'agent_id = "file"\n[sync]\nbatch_records = 3\n[presence]\ninterval_s = 3\n[queue]\nmax_records = 3')
    environ["AGENTIC_SYNC_PRESENCE_INTERVAL_S"] = "1"
    config = load(environ, {"presence": {"interval_s": 2}, "sync": {"batch_records": 2}, "agent_id": "host"})
    assert config.presence.interval_s == 1
    assert config.sync.batch_records == 2
    assert config.queue.max_records == 3
    assert config.agent_id == "host"


@pytest.mark.parametrize(
    ("theirs", "ours", "path"),
    [
        ("AGENT_NAME", "AGENTIC_SYNC_AGENT_ID", "agent_id"),
        ("CORE_WORKSPACE", "AGENTIC_SYNC_ROOT", "root"),
        ("CORE_API_URL", "AGENTIC_SYNC_PLATFORM_BASE_URL", "base_url"),
    ],
)
def test_a_name_of_the_go_agent_comes_before_ours(environ: dict[str, str], theirs: str, ours: str, path: str) -> None:
    def value() -> object:
        config = load(environ)
        return config.platform.base_url if path == "base_url" else getattr(config, path)

    environ[ours] = "https://ours"
    ours_alone = value()
    environ[theirs] = "https://theirs"
    assert "ours" in str(ours_alone)
    assert "theirs" in str(value())
    environ[theirs] = " "
    assert value() == ours_alone, "an empty variable is no variable"


@pytest.mark.parametrize("text", ["DEBUG", "Debug", " debug "])
def test_the_log_level_may_be_written_in_capitals_in_the_environment(environ: dict[str, str], text: str) -> None:
    assert load(environ | {"AGENTIC_SYNC_LOG_LEVEL": text}).log.level == "debug"
    assert problems(environ, {"log": {"level": "DEBUG"}}).keys() == {"log.level"}


def test_every_key_can_be_set_in_the_environment(environ: dict[str, str], tmp_path: Path) -> None:
    texts: dict[str, tuple[str, object]] = {
        "agent_id": ("a", "a"),
        "root": ("/r", "/r"),
        "state_dir": ("/s", "/s"),
        "platform.base_url": (" https://p ", "https://p"),
        "platform.api_key": ("k", Secret("k")),
        "platform.ca_file": (environ["AGENTIC_SYNC_CONFIG"], environ["AGENTIC_SYNC_CONFIG"]),
        "platform.proxy": ("http://x:1", "http://x:1"),
        "platform.allow_hosts": ("p, q,", ("p", "q")),
        "platform.allow_insecure_http": ("yes", True),
        "platform.timeout_s": ("1.5", 1.5),
        "sync.enabled": ("OFF", False),
        "sync.mirror_json": ("on", True),
        "sync.import_core_state": ("0", False),
        "sync.batch_records": ("7", 7),
        "sync.batch_bytes": ("2048", 2048),
        "queue.max_records": ("1", 1),
        "queue.max_bytes": ("1e3", 1000),
        "fabric.center_url": ("https://c", "https://c"),
        "fabric.session_path": ("/s", "/s"),
        "fabric.presence_path": ("/p/{user_id}", "/p/{user_id}"),
        "fabric.timeout_s": ("2", 2.0),
        "fabric.ca_file": (str(tmp_path / "config.toml"), str(tmp_path / "config.toml")),
        "fabric.proxy": ("https://x", "https://x"),
        "fabric.allow_insecure_http": ("TRUE", True),
        "fabric.allow_hosts": ('["c"]', ("c",)),
        "presence.enabled": ("no", False),
        "presence.interval_s": ("5", 5.0),
        "presence.refresh_s": ("6", 6.0),
        "presence.source": ("src", "src"),
        "presence.concurrency_per_guild": ("2", 2),
        "presence.offline_at_exit": ("false", False),
        "bindings": ('[{"agent_id": "a",\n "guild_node_id": "g"}]', (Binding(agent_id="a", guild_node_id="g"),)),
        "identities": ('[{"agent_id": "a", "api_key": "x"}]', (Identity(agent_id="a", api_key=Secret("x")),)),
        "host.read_agent_state_method": ("R", "R"),
        "host.log_method": ("L", "L"),
        "host.timeout_s": ("3", 3.0),
        "limits.max_message_bytes": ("4096", 4096),
        "limits.handlers": ("2", 2),
        "limits.waiting": ("3", 3),
        "limits.waiting_bytes": ("4", 4),
        "log.level": ("debug", "debug"),
        "shutdown_grace_s": ("0.5", 0.5),
    }
    alone = {"platform.api_key_env": ("V", "V"), "platform.api_key_file": ("/f", "/f")}
    assert texts.keys() | alone.keys() == {key.path for key in keys()}
    for group in (
        texts,
        {"platform.api_key_env": alone["platform.api_key_env"]},
        {"platform.api_key_file": ("/f", "/f")},
    ):
        names = {"AGENTIC_SYNC_" + path.upper().replace(".", "_"): text for path, (text, _) in group.items()}
        config = load(environ | names)
        for path, (_, expected) in group.items():
            value: object = config
            for name in path.split("."):
                value = getattr(value, name)
            assert (path, value) == (path, expected)
            assert type(value) is type(expected)


def test_null_and_empty_text_are_not_given_where_nothing_is_the_default(environ: dict[str, str]) -> None:
    write(environ, 'agent_id = "file"\n[platform]\nproxy = "http://file"')
    nothing: list[Host] = [{"agent_id": empty, "platform": {"proxy": empty}} for empty in (None, "")]
    for host in nothing:
        config = load(environ, host)
        assert (config.agent_id, config.platform.proxy) == ("file", "http://file")
    given = {"agent_id": "a", "api_key": "", "api_key_env": None, "api_key_file": "/f"}
    assert load(environ, {"identities": [given]}).identities == (Identity(agent_id="a", api_key_file="/f"),)


def test_a_whole_float_is_a_whole_number(environ: dict[str, str]) -> None:
    records = load(environ, {"queue": {"max_records": 5.0}}).queue.max_records
    assert records == 5
    assert type(records) is int
    assert problems(environ, {"queue": {"max_records": 5.5}}).keys() == {"queue.max_records"}


def test_an_explicitly_named_file_must_be_there_and_be_toml(environ: dict[str, str], tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.toml")
    assert problems(environ | {"AGENTIC_SYNC_CONFIG": missing}).keys() == {missing}
    assert problems(environ | {"AGENTIC_SYNC_CONFIG": "~/missing.toml"}).keys() == {missing}
    assert problems(environ | {"AGENTIC_SYNC_CONFIG": str(tmp_path)}).keys() == {str(tmp_path)}
    for content in (b"a = ", b'a = "\xff"', b"a = " + b"[" * 100_000):
        Path(environ["AGENTIC_SYNC_CONFIG"]).write_bytes(content)
        assert problems(environ).keys() == {environ["AGENTIC_SYNC_CONFIG"]}


def test_the_file_of_the_user_is_read_when_none_is_named_and_may_be_absent(
    tmp_path: Path,
) -> None:
    environ = {"HOME": str(tmp_path), "AGENTIC_SYNC_CONFIG": ""}
    assert load(environ).presence.interval_s == 30
    usual = "Library/Application Support" if sys.platform == "darwin" else ".config"
    for folder, seconds in ((usual, 7), ("given", 8)):
        path = tmp_path / folder / "agentic-sync" / "config.toml"
        path.parent.mkdir(parents=True)
        path.write_text(f"presence.interval_s = {seconds}\n", encoding="utf-8")
    assert load(environ).presence.interval_s == 7
    assert load(environ | {"XDG_CONFIG_HOME": "not/absolute"}).presence.interval_s == 7
    assert load(environ | {"XDG_CONFIG_HOME": str(tmp_path / "given")}).presence.interval_s == 8


def test_the_first_source_that_gives_the_platform_key_hides_every_way_of_the_others(environ: dict[str, str]) -> None:
    write(environ, '[platform]\napi_key_env = "FILE"')
    platform = load(environ, {"platform": {"api_key_file": "/host"}}).platform
    assert (platform.api_key_file, platform.api_key_env) == ("/host", None)
    platform = load(environ | {"AGENTIC_SYNC_PLATFORM_API_KEY": "k"}, {"platform": {"api_key_file": "/host"}}).platform
    assert (platform.api_key, platform.api_key_file, platform.api_key_env) == (Secret("k"), None, None)


def test_the_tokens_of_the_go_agent_stay_where_they_are(environ: dict[str, str]) -> None:
    """They are read from the environment each time a token is needed, and no way to give one hides another."""
    environ |= {"CORE_AGENT_API_KEY": "a", "CORE_BRAIN_KEY": "b", "AGENTIC_SYNC_PLATFORM_API_KEY_FILE": "/f"}
    platform = load(environ).platform
    assert (platform.api_key, platform.api_key_file) == (None, "/f")


def test_paths_become_absolute_and_a_tilde_is_the_home(environ: dict[str, str], tmp_path: Path) -> None:
    config = load(
        environ,
        {
            "root": "~",
            "platform": {"api_key_file": "~/key"},
            "identities": [{"agent_id": "a", "api_key_file": "here"}],
        },
    )
    assert (config.root, config.state_dir) == (str(tmp_path), str(tmp_path / "sync"))
    assert config.platform.api_key_file == str(tmp_path / "key")
    assert config.identities[0].api_key_file == str(Path.cwd() / "here")
    assert load(environ, {"root": "${HOME}"}).root == str(Path.cwd() / "${HOME}"), "nothing else is expanded"


def test_core_home_moves_the_root_but_not_the_tilde(environ: dict[str, str], tmp_path: Path) -> None:
    environ["CORE_HOME"] = "/core"
    assert home(environ) == Path("/core")
    assert load(environ).root == "/core/Code/.core"
    assert load(environ, {"state_dir": "~/s"}).state_dir == str(tmp_path / "s")
    assert home({}) == Path.home()
    assert load({"AGENTIC_SYNC_CONFIG": environ["AGENTIC_SYNC_CONFIG"]}, {"root": "~/r"}).root == str(Path.home() / "r")


def test_changed_names_every_path_that_differs_and_lists_as_a_whole(environ: dict[str, str]) -> None:
    old = load(environ, {"identities": [{"agent_id": "a", "api_key": "x"}], "platform": {"api_key": "x"}})
    new = load(
        environ,
        {
            "identities": [{"agent_id": "a", "api_key": "y"}],
            "platform": {"api_key": "y", "timeout_s": 1},
            "bindings": [{"agent_id": "a", "guild_node_id": "g"}],
        },
    )
    assert changed(old, new) == ["platform.api_key", "platform.timeout_s", "bindings", "identities"]
    assert changed(new, new) == []


def test_only_a_restart_changes_root_state_folder_and_limits(environ: dict[str, str]) -> None:
    limits = {"max_message_bytes": 2048, "handlers": 1, "waiting": 1, "waiting_bytes": 1}
    old = load(environ)
    new = load(environ, {"root": "/r", "limits": limits, "agent_id": "other"})
    with pytest.raises(ConfigInvalid) as caught:
        check_change(old, new)
    assert {path for path, _ in caught.value.problems} == {"root", "state_dir", *(f"limits.{name}" for name in limits)}
    assert {path for path, _ in caught.value.problems} == set(RESTART_ONLY)
    check_change(old, load(environ, {"agent_id": "other", "sync": {"enabled": False}}))


def test_explain_shows_no_secret(environ: dict[str, str]) -> None:
    config = load(
        environ,
        {
            "platform": {"api_key": "s3cr3t", "proxy": "http://user:s3cr3t@p@x:1"},
            "identities": [{"agent_id": "a", "api_key": "s3cr3t"}],
            "fabric": {"proxy": "http://x:1"},
        },
    )
    plain = explain(config)
    assert "s3cr3t" not in repr(plain)
    assert plain["platform"]["api_key"] == plain["identities"][0]["api_key"] == "***"
    assert plain["platform"]["proxy"] == "http://***@x:1"
    assert plain["fabric"]["proxy"] == "http://x:1"
    assert plain["presence"]["interval_s"] == 30


def test_the_table_has_a_row_with_help_for_every_key_and_member() -> None:
    rows = {row.path: row for row in table()}
    assert rows.keys() >= {key.path for key in keys()}
    assert all(row.about.label and row.about.help and row.default_text for row in rows.values())
    assert rows["identities[].agent_id"].environment == ()
    assert rows["agent_id"].environment == ("AGENT_NAME", "AGENTIC_SYNC_AGENT_ID")
    assert rows["presence.interval_s"].default_text == "30"
    assert rows["identities[].agent_id"].default_text == "required"
    assert rows["identities[].enabled"].default_text == "true"
    assert rows["platform.api_key"].default_text == "none"


def test_the_schema_states_defaults_and_never_one_for_a_secret() -> None:
    properties = schema()["properties"]
    assert properties["presence"]["properties"]["interval_s"]["default"] == 30
    assert properties["bindings"]["default"] == []
    secrets = (
        properties["platform"]["properties"]["api_key"],
        properties["identities"]["items"]["properties"]["api_key"],
    )
    for secret in secrets:
        assert secret["writeOnly"] is True
        assert "default" not in secret
