import json
import os
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from plugin.loopback.workspaces import write_workspace
from plugin.sync.record import UNSET_TIME, make_record
from plugin.sync.scan import Candidate, Scanner, ScanResult
from plugin.sync.workspace import REPORT_MAX_BYTES, STATUS_MAX_BYTES

NOW = datetime(2026, 4, 14, 12, 0, 0, 123456, tzinfo=UTC)
NOBODY = 65534


def finished(root: Path, name: str, *, status: str = "completed", report: Mapping[str, object] | None = None) -> Path:
    return write_workspace(root, name, status=status, repo="go-io", now=NOW, report=report, agent="codex", runs=2)


def status_only(root: Path, name: str, **status: object) -> Path:
    """Write a workspace by hand: a folder with a status, and nothing else in it."""
    folder = root / "workspace" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(json.dumps({"status": "completed", "updated_at": UNSET_TIME} | status))
    return folder


def settle(root: Path) -> None:
    """Make every file look as if it had been written long ago."""
    for folder, _, names in os.walk(root):
        for name in names:
            os.utime(Path(folder) / name, (1_700_000_000, 1_700_000_000))


def ids(result: ScanResult) -> list[str]:
    return [candidate.id for candidate in result.candidates]


def only(result: ScanResult) -> Candidate:
    (candidate,) = result.candidates
    return candidate


def body(candidate: Candidate) -> dict[str, object]:
    record = candidate.load()
    assert record is not None
    loaded: dict[str, object] = json.loads(record.body)
    return loaded


def paths(result: ScanResult, root: Path) -> list[str]:
    return [os.path.relpath(problem.path, root / "workspace") for problem in result.problems]


# -- what is a workspace -------------------------------------------------------------------------------------------


def test_a_status_makes_a_workspace_at_depth_one_and_three_alone(tmp_path: Path) -> None:
    for name in ("one", "a/two", "a/b/three", "a/b/c/four", "a/b/c/d/five"):
        status_only(tmp_path, name)
    assert ids(Scanner(tmp_path).scan()) == ["a/b/three", "one"]


@pytest.mark.parametrize("name", ["a/two", "a/b/c/four", "a/b/c/d/five", "a/b/c/d/e/f/g/eight"])
def test_elsewhere_a_workspace_also_has_a_repo_and_a_meta_folder(tmp_path: Path, name: str) -> None:
    folder = status_only(tmp_path, name)
    (folder / "repo").mkdir()
    assert ids(Scanner(tmp_path).scan()) == []
    (folder / ".meta").mkdir()
    assert ids(Scanner(tmp_path).scan()) == [name]


def test_what_lies_below_a_workspace_is_none(tmp_path: Path) -> None:
    finished(tmp_path, "one")
    finished(tmp_path, "one/repo/inner")
    finished(tmp_path, "a/two")
    finished(tmp_path, "a/two/three")
    assert ids(Scanner(tmp_path).scan()) == ["a/two", "one"]


def test_a_folder_or_a_pipe_called_status_makes_no_workspace(tmp_path: Path) -> None:
    (tmp_path / "workspace/one/status.json").mkdir(parents=True)
    (tmp_path / "workspace/two").mkdir()
    os.mkfifo(tmp_path / "workspace/two/status.json")
    assert Scanner(tmp_path).scan() == ScanResult(candidates=(), workspaces=0, problems=(), new_problems=())


def test_workspaces_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    names = [f"{org}/{repo}/task-{task}" for org in "ba" for repo in "dc" for task in (2, 10, 1)]
    for name in (*names, "zz", "aa"):
        finished(tmp_path, name)
    assert ids(Scanner(tmp_path).scan()) == sorted([*names, "zz", "aa"])


def test_only_finished_work_is_a_candidate_and_all_is_counted(tmp_path: Path) -> None:
    words = ["completed", "merged", "failed", "blocked", "running", "queued", "Completed", "completed ", "", "new"]
    for number, word in enumerate(words):
        status_only(tmp_path, f"task-{number}", status=word)
    result = Scanner(tmp_path).scan()
    assert ids(result) == ["task-0", "task-1", "task-2", "task-3"]
    assert result.workspaces == len(words)
    assert result.problems == ()


def test_without_a_workspace_folder_there_is_nothing_and_no_problem(tmp_path: Path) -> None:
    assert Scanner(tmp_path / "none").scan() == ScanResult(candidates=(), workspaces=0, problems=(), new_problems=())


def test_a_file_in_place_of_the_workspace_folder_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "workspace").write_text("")
    result = Scanner(tmp_path).scan()
    assert paths(result, tmp_path) == ["."]


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
        status.chmod(0o644)
        assert ids(scanner.scan()) == ["one"]


# -- links ---------------------------------------------------------------------------------------------------------


def test_the_workspace_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    finished(tmp_path / "disk", "a/b/one")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/workspace").symlink_to(tmp_path / "disk/workspace")
    result = Scanner(tmp_path / "root").scan()
    assert (ids(result), result.problems) == (["a/b/one"], ())


def test_a_link_that_leaves_the_workspaces_is_not_followed_and_said_once(tmp_path: Path) -> None:
    finished(tmp_path / "elsewhere", "one")
    finished(tmp_path, "two")
    (tmp_path / "workspace/out").symlink_to(tmp_path / "elsewhere/workspace/one")
    (tmp_path / "workspace/up").symlink_to(tmp_path)
    scanner = Scanner(tmp_path)
    first, second = scanner.scan(), scanner.scan()
    assert ids(first) == ["two"]
    assert paths(first, tmp_path) == ["out", "up"]
    assert (len(first.new_problems), len(second.new_problems)) == (2, 0)


def test_links_to_what_is_found_anyway_add_nothing(tmp_path: Path) -> None:
    finished(tmp_path, "a/b/one")
    base = tmp_path / "workspace"
    (base / "0-workspace").symlink_to(base / "a/b/one")
    (base / "0-folder").symlink_to(base / "a")
    (base / "a/b/loop").symlink_to(base)
    (base / "a/self").symlink_to(base / "a/self")
    (base / "a/dangling").symlink_to(base / "nothing")
    (base / "a/file").symlink_to(base / "a/b/one/status.json")
    result = Scanner(tmp_path).scan()
    assert (ids(result), result.workspaces, result.problems) == (["a/b/one"], 1, ())


def test_a_link_to_what_is_not_found_otherwise_is_followed_once(tmp_path: Path) -> None:
    finished(tmp_path, "one")
    finished(tmp_path, "one/repo/a/b/inner")
    base = tmp_path / "workspace"
    (base / "first").symlink_to(base / "one/repo/a")
    (base / "second").symlink_to(base / "one/repo/a/b/inner")
    (base / "one/repo/a/b/loop").symlink_to(base / "one/repo")
    result = Scanner(tmp_path).scan()
    assert (ids(result), result.problems) == (["first/b/inner", "one"], ())
    assert body(result.candidates[0])["workspace"] == "first/b/inner"


def test_a_link_at_depth_one_to_a_status_within_is_a_workspace(tmp_path: Path) -> None:
    finished(tmp_path, "one")
    finished(tmp_path, "one/repo/inner")
    (tmp_path / "workspace/current").symlink_to("one/repo/inner")
    assert ids(Scanner(tmp_path).scan()) == ["current", "one"]


def test_repo_and_meta_may_be_links(tmp_path: Path) -> None:
    folder = status_only(tmp_path, "a/two")
    (tmp_path / "checkout").mkdir()
    (folder / "repo").symlink_to(tmp_path / "checkout")
    (tmp_path / "workspace/a/meta").mkdir()
    (folder / ".meta").symlink_to("../meta")
    (tmp_path / "workspace/a/meta/report.json").write_text('{"passed":true}')
    result = Scanner(tmp_path).scan()
    assert ids(result) == ["a/two"]
    assert body(only(result))["report"] == {"passed": True}


def test_files_behind_links_are_read_inside_the_workspaces_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"status":"completed","token":"x"}')
    inside, outside, meta = (finished(tmp_path, name) for name in ("inside", "outside", "meta"))
    stolen = finished(tmp_path, "stolen")
    (tmp_path / "workspace/shared.json").write_text('{"passed":true}')
    (inside / ".meta/report.json").symlink_to("../../shared.json")
    (outside / ".meta/report.json").symlink_to(tmp_path / "secret.json")
    (tmp_path / "away").mkdir()
    (tmp_path / "away/report.json").write_text('{"token":"x"}')
    (meta / ".meta").rmdir()
    (meta / ".meta").symlink_to(tmp_path / "away")
    (stolen / "status.json").unlink()
    (stolen / "status.json").symlink_to(tmp_path / "secret.json")
    result = Scanner(tmp_path).scan()
    assert ids(result) == ["inside", "meta", "outside"]
    assert [("report" in body(candidate)) for candidate in result.candidates] == [True, False, False]
    assert paths(result, tmp_path) == ["meta/.meta", "outside/.meta/report.json", "stolen/status.json"]


# -- again and again -----------------------------------------------------------------------------------------------


def test_what_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    finished(tmp_path, "one", report={"a": 1})
    finished(tmp_path, "two")
    settle(tmp_path)
    scanner = Scanner(tmp_path)
    first, second = scanner.scan(), scanner.scan()
    # A candidate is made when a workspace is read; the same object says that it was not.
    assert all(one is two for one, two in zip(first.candidates, second.candidates, strict=True))
    finished(tmp_path, "two", status="merged")
    third = scanner.scan()
    assert third.candidates[0] is first.candidates[0]
    assert third.candidates[1].fingerprint != first.candidates[1].fingerprint


def test_a_file_that_was_just_written_is_read_once_more(tmp_path: Path) -> None:
    status = finished(tmp_path, "one") / "status.json"
    written_ns = status.stat().st_mtime_ns
    early = Scanner(tmp_path, now_ns=lambda: written_ns + 1_999_999_999)
    first, second = early.scan(), early.scan()
    assert only(first) == only(second)
    assert only(first) is not only(second)
    late = Scanner(tmp_path, now_ns=lambda: written_ns + 2_000_000_001)
    assert only(late.scan()) is only(late.scan())


def test_a_change_that_keeps_size_and_time_is_seen(tmp_path: Path) -> None:
    status = finished(tmp_path, "one") / "status.json"
    settle(tmp_path)
    scanner = Scanner(tmp_path)
    before = only(scanner.scan())
    status.write_text(status.read_text().replace('"runs":2', '"runs":3'))
    settle(tmp_path)
    after = only(scanner.scan())
    assert (before.core_fingerprint, after.core_fingerprint) == ("2026-04-14T12:00:00Z#2", "2026-04-14T12:00:00Z#3")


def test_a_report_that_comes_changes_or_goes_is_seen_though_the_status_stays(tmp_path: Path) -> None:
    folder = finished(tmp_path, "one")
    report = folder / ".meta/report.json"
    scanner = Scanner(tmp_path)
    seen: list[str] = []
    for text in (None, '{"n":1}', '{"n":2}', None):
        report.unlink(missing_ok=True) if text is None else report.write_text(text)
        settle(tmp_path)
        seen.append(only(scanner.scan()).fingerprint)
    assert len(set(seen)) == 3
    assert seen[0] == seen[3]


def test_a_workspace_that_runs_again_or_goes_is_no_candidate(tmp_path: Path) -> None:
    finished(tmp_path, "one")
    gone = finished(tmp_path, "two")
    scanner = Scanner(tmp_path)
    candidates = scanner.scan().candidates
    finished(tmp_path, "one", status="running")
    gone.rename(tmp_path / "away")
    result = scanner.scan()
    assert (ids(result), result.workspaces, result.problems) == ([], 1, ())
    assert [candidate.load() for candidate in candidates] == [None, None]
    finished(tmp_path, "one")
    assert ids(scanner.scan()) == ["one"]


def test_loading_gives_the_state_of_the_moment(tmp_path: Path) -> None:
    finished(tmp_path, "one")
    candidate = only(Scanner(tmp_path).scan())
    write_workspace(tmp_path, "one", status="merged", repo="go-io", now=NOW + timedelta(seconds=1), runs=3)
    record = candidate.load()
    assert record is not None
    assert record.fingerprint != candidate.fingerprint
    assert record.core_fingerprint == "2026-04-14T12:00:01Z#3"
    assert body(candidate)["status"] == "merged"


def test_a_scan_that_finds_nothing_new_opens_no_file(tmp_path: Path) -> None:
    opened: list[str] = []
    watching = [False]

    def watch(event: str, values: tuple[object, ...]) -> None:
        if watching[0] and event == "open" and str(values[0]).startswith(str(tmp_path)):
            opened.append(str(values[0]))

    for number in range(3):
        finished(tmp_path, f"task-{number}", report={"a": 1} if number else None)
    settle(tmp_path)
    scanner = Scanner(tmp_path)
    sys.addaudithook(watch)  # for as long as the process lives, so it is told when to look
    watching[0] = True
    scanner.scan()
    assert opened
    opened.clear()
    scanner.scan()
    watching[0] = False
    assert opened == []
