import json
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from plugin.sync.record import UNSET_TIME, make_record
from plugin.sync.scan import Scanner
from plugin.sync.workspace import REPORT_MAX_BYTES, STATUS_MAX_BYTES
from tests.support.workspaces import body, finished, ids, only, paths, settle, status_only

NOBODY = 65534


# -- records -------------------------------------------------------------------------------------------------------


def test_a_record_has_every_key_even_when_the_status_has_none(tmp_path: Path) -> None:
    (folder := tmp_path / "workspace/core/go-io/task-5").mkdir(parents=True)
    (folder / "status.json").write_text('{"status":"failed"}')
    candidate = only(Scanner(tmp_path).scan())
    assert candidate.core_fingerprint == f"{UNSET_TIME}#0"
    texts = ("repo", "org", "task", "agent", "agent_type", "branch", "question", "process_id", "pr_url")
    assert body(candidate) == dict.fromkeys(texts, "") | {
        "id": "core/go-io/task-5",
        "workspace": "core/go-io/task-5",
        "status": "failed",
        "issue": 0,
        "runs": 0,
        "started_at": UNSET_TIME,
        "updated_at": UNSET_TIME,
    }


def test_a_record_says_what_the_status_says(tmp_path: Path) -> None:
    said = {
        "status": "blocked",
        "agent": "codex",
        "repo": "go-io",
        "org": "core",
        "task": "fix <it>",
        "branch": "agent/fix",
        "issue": 42,
        "process_id": "p-1",
        "started_at": "2026-04-14T12:00:00.123456789+01:00",
        "updated_at": "2026-04-14T13:00:00.123456789+01:00",
        "question": "which?",
        "runs": 3,
        "pr_url": "https://forge.example/pr/1",
    }
    status_only(tmp_path, "one", **said, pid=7, note="unknown keys are ignored")
    candidate = only(Scanner(tmp_path).scan())
    assert candidate.core_fingerprint == "2026-04-14T12:00:00Z#3"
    assert body(candidate) == said | {"id": "one", "workspace": "one", "agent_type": "codex"}


def test_null_in_a_status_is_the_same_as_nothing(tmp_path: Path) -> None:
    status_only(tmp_path, "one", task=None, runs=None, started_at=None)
    content = body(only(Scanner(tmp_path).scan()))
    assert (content["task"], content["runs"], content["started_at"]) == ("", 0, UNSET_TIME)


def test_a_loaded_record_is_the_one_that_was_scanned(tmp_path: Path) -> None:
    finished(tmp_path, "one", report={"passed": True, "score": 1.0, "findings": [{"b": 1, "a": 2.0}]})
    candidate = only(Scanner(tmp_path).scan())
    record = candidate.load()
    assert record is not None
    assert (record.id, record.fingerprint, record.core_fingerprint) == (
        "one",
        candidate.fingerprint,
        "2026-04-14T12:00:00Z#2",
    )
    assert make_record(json.loads(record.body)).fingerprint == record.fingerprint


def test_a_fingerprint_is_the_same_from_release_to_release(tmp_path: Path) -> None:
    folder = finished(tmp_path, "core/go-io/task-5")
    (folder / "status.json").write_text(
        '{"status":"merged","agent":"codex","repo":"go-io","org":"core","task":"fix \\u00fc <it>","issue":42,"runs":3,'
        '"started_at":"2026-04-14T11:00:00.5+01:00","updated_at":"2026-04-14T12:00:00.123456789Z","pid":7,"question":null}'
    )
    (folder / ".meta/report.json").write_text(
        '{"score":1.0,"passed":true,"findings":[{"line":1e2,"file":"a\\/b.go"},null],"changes":{"n":0.5}}'
    )
    candidate = only(Scanner(tmp_path).scan())
    # Another one would send once more all that platforms have.
    assert candidate.fingerprint == "af36296ebb0a5a8c7370608aced8154bd73568c06f718e626074c301d587d6d9"
    assert candidate.core_fingerprint == "2026-04-14T12:00:00Z#3"


def test_a_report_comes_whole_with_its_findings_and_changes_lifted(tmp_path: Path) -> None:
    report = {"passed": False, "findings": [{"code": "G1"}, {}], "changes": {"files": 3}, "score": 0.5}
    finished(tmp_path, "one", report=report)
    content = body(only(Scanner(tmp_path).scan()))
    assert (content["report"], content["findings"], content["changes"]) == (
        report,
        report["findings"],
        report["changes"],
    )


def test_only_objects_are_lifted_from_the_findings(tmp_path: Path) -> None:
    findings = [{"code": "G1"}, None, "text", 3, ["list"]]
    finished(tmp_path, "one", report={"findings": findings})
    content = body(only(Scanner(tmp_path).scan()))
    assert content["findings"] == [{"code": "G1"}]
    assert content["report"] == {"findings": findings}


@pytest.mark.parametrize(
    ("report", "keys"),
    [
        ("{}", set[str]()),
        ("null", set[str]()),
        ('{"findings":[],"changes":{}}', {"report"}),
        ('{"findings":{"a":1},"changes":[1]}', {"report"}),
        ('{"findings":[1,2],"changes":"x"}', {"report"}),
        ('{"findings":null,"changes":{"a":1}}', {"report", "changes"}),
    ],
)
def test_what_is_empty_in_a_report_is_left_out(tmp_path: Path, report: str, keys: set[str]) -> None:
    (finished(tmp_path, "one") / ".meta/report.json").write_text(report)
    result = Scanner(tmp_path).scan()
    assert body(only(result)).keys() & {"report", "findings", "changes"} == keys
    assert result.problems == ()


# -- what is broken ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"status":"compl',
        "[]",
        '{"status":"completed","runs":"2"}',
        '{"status":"completed","task":["x"]}',
        '{"status":"completed","issue":1.5}',
        '{"status":"completed","updated_at":"yesterday"}',
        '{"status":"completed","updated_at":"2026-04-14T12:00:00"}',
        '{"status":"completed","task":"\\ud800"}',
        "[" * 100_000,
    ],
)
def test_a_broken_status_is_skipped_and_said_once_until_it_changes(tmp_path: Path, text: str) -> None:
    finished(tmp_path, "good")
    broken = finished(tmp_path, "bad") / "status.json"
    broken.write_text(text)
    scanner = Scanner(tmp_path)
    first, second = scanner.scan(), scanner.scan()
    assert (ids(first), ids(second)) == (["good"], ["good"])
    assert first.workspaces == 2
    assert paths(first, tmp_path) == ["bad/status.json"]
    assert first.new_problems == first.problems == second.problems
    assert second.new_problems == ()
    broken.write_text(f"{text} ")
    assert len(scanner.scan().new_problems) == 1
    finished(tmp_path, "bad")
    healed = scanner.scan()
    assert (ids(healed), healed.problems) == (["bad", "good"], ())


def test_the_text_of_a_problem_says_where_and_what_was_expected(tmp_path: Path) -> None:
    status_only(tmp_path, "one", runs="two")
    (problem,) = Scanner(tmp_path).scan().problems
    assert "$.runs" in problem.text
    assert "int" in problem.text


@pytest.mark.parametrize("text", ["", '{"findings":[', "[1]", '"text"', "5", '{"n":1e999}', "[" * 100_000])
def test_a_broken_report_stays_where_it_is_and_the_record_goes_without_it(tmp_path: Path, text: str) -> None:
    report = finished(tmp_path, "one") / ".meta/report.json"
    bare = only(Scanner(tmp_path).scan())
    report.write_text(text)
    scanner = Scanner(tmp_path)
    first, second = scanner.scan(), scanner.scan()
    assert only(first) == only(second) == bare
    assert paths(first, tmp_path) == ["one/.meta/report.json"]
    assert (len(first.new_problems), len(second.new_problems), len(second.problems)) == (1, 0, 1)
    assert report.read_text() == text
    assert sorted(path.name for path in report.parent.iterdir()) == ["report.json"]
    report.write_text('{"passed":true}')
    healed = scanner.scan()
    assert "report" in body(only(healed))
    assert healed.problems == ()
    report.write_text(text)
    assert len(scanner.scan().new_problems) == 1


def test_a_problem_that_stands_is_not_new_when_its_file_is_read_again(tmp_path: Path) -> None:
    (finished(tmp_path, "one") / "status.json").write_text("{")
    settle(tmp_path)
    scanner = Scanner(tmp_path)
    scanner.scan()
    assert scanner.scan().problems == scanner.scan().problems
    assert scanner.scan().new_problems == ()


@pytest.mark.parametrize(("name", "most"), [("status.json", STATUS_MAX_BYTES), (".meta/report.json", REPORT_MAX_BYTES)])
def test_a_file_past_its_limit_is_not_read(tmp_path: Path, name: str, most: int) -> None:
    path = finished(tmp_path, "one", report={"a": 1}) / name
    text = path.read_text()
    path.write_text(text.ljust(most))
    assert Scanner(tmp_path).scan().problems == ()
    path.write_text(text.ljust(most + 1))
    assert paths(Scanner(tmp_path).scan(), tmp_path) == [f"one/{name}"]


def test_a_report_that_is_no_file_is_a_problem(tmp_path: Path) -> None:
    (finished(tmp_path, "one") / ".meta/report.json").mkdir()
    os.mkfifo(finished(tmp_path, "two") / ".meta/report.json")
    result = Scanner(tmp_path).scan()
    assert ids(result) == ["one", "two"]
    assert paths(result, tmp_path) == ["one/.meta/report.json", "two/.meta/report.json"]


def test_a_name_that_is_not_text_is_skipped_and_can_still_be_said(tmp_path: Path) -> None:
    finished(tmp_path, "good")
    folder = tmp_path / "workspace" / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    (folder / "status.json").write_text('{"status":"completed"}')
    result = Scanner(tmp_path).scan()
    assert ids(result) == ["good"]
    assert [problem.path.encode() for problem in result.problems] == [
        f"{tmp_path}/workspace/caf\\udce9/status.json".encode()
    ]


@contextmanager
def a_root_of_nobody() -> Generator[Path]:
    """Give a root that belongs to whoever runs the test, without the right to read everything."""
    uid = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if uid:
            yield root
            return
        root.chmod(0o755)
        os.chown(root, NOBODY, -1)
        os.seteuid(NOBODY)
        try:
            yield root
        finally:
            os.seteuid(uid)


@pytest.mark.parametrize("mode", [0o000, 0o400])
@pytest.mark.parametrize(
    ("shut", "said", "left"),
    [
        ("a", "a", ["one"]),
        ("a/b/two", "a/b/two", ["one"]),
        ("a/b/two/.meta", "a/b/two/.meta/report.json", ["a/b/two", "one"]),
    ],
)
def test_a_folder_that_cannot_be_read_is_skipped_and_said_once_until_it_heals(
    mode: int, shut: str, said: str, left: list[str]
) -> None:
    with a_root_of_nobody() as root:
        finished(root, "one")
        finished(root, "a/b/two", report={"passed": True})
        settle(root)
        folder = root / "workspace" / shut
        scanner = Scanner(root)
        folder.chmod(mode)
        try:
            first, second = scanner.scan(), scanner.scan()
            assert (ids(first), ids(second)) == (left, left)
            assert said in paths(first, root)
            assert (first.new_problems, second.new_problems) == (first.problems, ())
            folder.chmod(0o755)
            healed = scanner.scan()
            assert (ids(healed), healed.problems) == (["a/b/two", "one"], ())
            folder.chmod(mode)
            assert scanner.scan().new_problems == first.problems
        finally:
            folder.chmod(0o755)


def test_a_status_that_cannot_be_read_is_read_once_it_can_be() -> None:
    with a_root_of_nobody() as root:
        status = finished(root, "one") / "status.json"
        settle(root)
        status.chmod(0)
        scanner = Scanner(root)
        assert paths(scanner.scan(), root) == ["one/status.json"]
        assert scanner.scan().new_problems == ()
        os.utime(status, (1_600_000_000, 1_600_000_000))
        assert len(scanner.scan().new_problems) == 1
        status.chmod(0o644)
        assert ids(scanner.scan()) == ["one"]


def test_what_can_no_longer_be_seen_is_not_loaded() -> None:
    with a_root_of_nobody() as root:
        folder = finished(root, "one")
        candidate = only(Scanner(root).scan())
        folder.chmod(0)
        try:
            assert candidate.load() is None
        finally:
            folder.chmod(0o755)
        assert candidate.load() is not None
