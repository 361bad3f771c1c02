import logging
import os
from pathlib import Path

import pytest

from plugin.config import Config, Identity, Platform
from plugin.credentials import Credential, identity_credential, platform_credential
from plugin.secret import Secret


def text(credential: Credential) -> str | None:
    token = credential.current()
    return None if token is None else token.reveal()


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path)}


@pytest.fixture
def brain(tmp_path: Path) -> Path:
    path = tmp_path / ".claude" / "brain.key"
    path.parent.mkdir()
    return path


def replace(path: Path, content: str) -> None:
    """Put a new file in the place of the old one, as editors do."""
    new = path.with_suffix(".new")
    new.write_text(content, encoding="utf-8")
    new.replace(path)


def test_the_platform_token_follows_its_order(environ: dict[str, str], brain: Path, tmp_path: Path) -> None:
    brain.write_text("of-the-home\n")
    (tmp_path / "chosen").write_text("of-the-file")
    assert text(platform_credential(Config(), environ)) == "of-the-home"

    credential = platform_credential(Config(platform=Platform(api_key_file=str(tmp_path / "chosen"))), environ)
    assert (text(credential), credential.source) == ("of-the-file", "file ~/chosen")
    credential = platform_credential(Config(platform=Platform(api_key_env="MINE")), environ | {"MINE": "of-mine"})
    assert (text(credential), credential.source) == ("of-mine", "environment MINE")
    credential = platform_credential(Config(platform=Platform(api_key=Secret("of-config"))), environ)
    assert (text(credential), credential.source) == ("of-config", "configuration")

    environ["CORE_BRAIN_KEY"] = "of-brain"
    assert (text(credential), credential.source) == ("of-brain", "environment CORE_BRAIN_KEY")
    environ["CORE_AGENT_API_KEY"] = "of-core"
    assert (text(credential), credential.source) == ("of-core", "environment CORE_AGENT_API_KEY")
    environ["CORE_AGENT_API_KEY"] = " "
    assert text(credential) == "of-brain"


def test_the_default_file_is_below_the_home_of_the_go_agent(environ: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "core" / ".claude"
    folder.mkdir(parents=True)
    (folder / "brain.key").write_text("k")
    credential = platform_credential(Config(), environ | {"CORE_HOME": str(tmp_path / "core")})
    assert (text(credential), credential.source) == ("k", "file ~/core/.claude/brain.key")


def test_a_chosen_place_that_is_empty_is_not_replaced_by_another(environ: dict[str, str], brain: Path) -> None:
    brain.write_text("never this one")
    for platform in (Platform(api_key_env="MISSING"), Platform(api_key_file=str(brain.with_name("missing")))):
        credential = platform_credential(Config(platform=platform), environ)
        assert credential.current() is None
        assert credential.problem is not None


def test_an_identity_takes_its_key_from_value_variable_or_file(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("of-the-file")
    environ |= {"KEY": "of-the-variable", "CORE_AGENT_API_KEY": "the platform's"}
    expected = {
        Identity(agent_id="a", api_key=Secret("of-the-value")): "of-the-value",
        Identity(agent_id="a", api_key_env="KEY"): "of-the-variable",
        Identity(agent_id="a", api_key_file=str(tmp_path / "key")): "of-the-file",
        Identity(agent_id="a"): None,
    }
    assert {identity: text(identity_credential(identity, environ)) for identity in expected} == expected
    nothing = identity_credential(Identity(agent_id="a"), environ)
    assert (nothing.current(), nothing.source) == (None, "none")
    assert nothing.problem is not None


def test_a_file_may_come_change_and_go(environ: dict[str, str], brain: Path) -> None:
    credential = platform_credential(Config(), environ)
    assert credential.current() is None
    assert credential.problem is not None
    brain.write_text("one")
    assert (text(credential), credential.problem) == ("one", None)
    replace(brain, "two")
    assert text(credential) == "two"
    brain.unlink()
    assert credential.current() is None
    assert credential.problem is not None


def test_a_file_that_stays_the_same_is_read_once_until_it_is_forgotten(environ: dict[str, str], brain: Path) -> None:
    brain.write_text("one")
    status = brain.stat()
    credential = platform_credential(Config(), environ)
    assert text(credential) == "one"
    brain.write_text("two")
    os.utime(brain, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert text(credential) == "one", "the stat says that nothing changed"
    credential.forget()
    assert text(credential) == "two"


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfkey\r\n", b"\n key \n\n", b"key"])
def test_what_editors_add_around_a_key_is_no_part_of_it(environ: dict[str, str], brain: Path, content: bytes) -> None:
    brain.write_bytes(content)
    assert text(platform_credential(Config(), environ)) == "key"


@pytest.mark.parametrize(
    "content",
    [b"", b" \n", b"s3cr3t\ntwo", b"s3cr3t two", b"a\x00b", b"a\x7f", "schlüssel".encode(), b"\xff", b"x" * 16385],
)
def test_a_file_that_holds_no_key_is_a_problem_that_shows_nothing_of_it(
    environ: dict[str, str], brain: Path, content: bytes
) -> None:
    brain.write_bytes(content)
    credential = platform_credential(Config(), environ)
    assert credential.current() is None
    assert credential.problem is not None
    assert "~/.claude/brain.key" in credential.problem
    assert "s3cr3t" not in credential.problem
    brain.write_bytes(b"key")
    assert text(credential) == "key"


@pytest.mark.parametrize("value", ["a\nb", "a b", "\x1b[0m", ""])
def test_a_variable_or_value_that_is_no_key_is_a_problem(environ: dict[str, str], value: str) -> None:
    for credential in (
        Credential(env="KEY", environ=environ | {"KEY": value}),
        Credential(value=Secret(value or " "), environ=environ),
    ):
        assert credential.current() is None
        assert credential.problem is not None


def test_what_is_no_regular_file_is_refused_without_waiting(environ: dict[str, str], brain: Path) -> None:
    os.mkfifo(brain)
    credential = platform_credential(Config(), environ)
    assert credential.current() is None
    brain.unlink()
    brain.mkdir()
    assert credential.current() is None
    assert credential.problem is not None
    assert Credential(file=Path("a\0b"), environ=environ).current() is None


def test_a_problem_is_logged_once_and_again_when_it_returns(
    environ: dict[str, str], brain: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    credential = platform_credential(Config(), environ)
    for _ in range(3):
        credential.current()
    assert len(caplog.records) == 1
    assert getattr(caplog.records[0], "fields")["owner"] == "platform"  # noqa: B009 -- an attribute that only `extra` sets
    brain.write_text("key")
    credential.current()
    brain.unlink()
    credential.current()
    assert len(caplog.records) == 2
    identity_credential(Identity(agent_id="a"), environ).current()
    assert getattr(caplog.records[2], "fields")["owner"] == "agent a"  # noqa: B009 -- as above


def test_a_path_outside_the_home_is_shown_whole() -> None:
    assert Credential(file=Path("/etc/key"), environ={"HOME": "/home/x"}).source == "file /etc/key"
    assert Credential(file=Path("/etc/key"), environ={}).source == "file /etc/key"
