import os
from pathlib import Path

import pytest

from plugin.sync.scan import Scanner, ScanResult
from plugin.sync.walk import is_link
from plugin.sync.workspace import STATUS_MAX_BYTES
from tests.support.workspaces import body, finished, ids, only, paths, settle, status_only


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
    status_only(tmp_path, "one/repo/bare")
    (tmp_path / "workspace/current").symlink_to("one/repo/inner")
    (tmp_path / "workspace/other").symlink_to("one/repo/bare")
    assert ids(Scanner(tmp_path).scan()) == ["current", "one", "other"]


def test_a_folder_that_two_links_lead_to_is_one_workspace(tmp_path: Path) -> None:
    finished(tmp_path, "one")
    finished(tmp_path, "one/repo/x/inner")
    (tmp_path / "workspace/a").mkdir()
    (tmp_path / "workspace/a/first").symlink_to("../one/repo/x/inner")
    (tmp_path / "workspace/a/second").symlink_to("../one/repo/x")
    assert ids(Scanner(tmp_path).scan()) == ["a/first", "one"]


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


def test_a_status_behind_a_link_makes_a_workspace_when_it_leads_to_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "workspace/one"
    (folder / "repo").mkdir(parents=True)
    finished(tmp_path, "a/two").rename(folder / "repo/inner")
    (folder / "status.json").symlink_to("repo/inner/status.json")
    settle(tmp_path)
    for name, target in (("dangling", "nothing"), ("folder", "../one"), ("self", "status.json")):
        (tmp_path / "workspace" / name).mkdir()
        (tmp_path / "workspace" / name / "status.json").symlink_to(target)
    scanner = Scanner(tmp_path)
    first, second = scanner.scan(), scanner.scan()
    assert (ids(first), first.workspaces) == (["one"], 1)
    assert only(first) is only(second)
    assert paths(first, tmp_path) == ["self"]


def test_a_scan_leaves_no_file_and_no_folder_open(tmp_path: Path) -> None:
    for name, text in (("good", None), ("broken", "{"), ("long", " " * (STATUS_MAX_BYTES + 1))):
        status = finished(tmp_path, name, report={"a": 1}) / "status.json"
        status.write_text(text or status.read_text())
    (tmp_path / "workspace/none").mkdir()
    os.mkfifo(tmp_path / "workspace/none/status.json")
    scanner = Scanner(tmp_path)
    scanner.scan()
    before = os.listdir("/dev/fd")  # noqa: PTH208 - a Path would be no shorter
    assert len(scanner.scan().problems) == 2
    assert os.listdir("/dev/fd") == before  # noqa: PTH208


def test_only_a_link_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nothing")
    (tmp_path / "folder").mkdir()
    assert [is_link(f"{tmp_path}/{name}") for name in ("link", "folder", "nothing")] == [True, False, False]
