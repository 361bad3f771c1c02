import sys
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import FrameType

from plugin.loopback.workspaces import write_workspace
from plugin.sync.scan import Scanner
from tests.support.workspaces import NOW, body, finished, ids, only, settle


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


def test_a_report_that_was_just_written_is_read_once_more_with_its_status(tmp_path: Path) -> None:
    folder = finished(tmp_path, "one", report={"a": 1})
    settle(tmp_path)
    report = folder / ".meta/report.json"
    report.write_text('{"a":2}')
    written_ns = report.stat().st_mtime_ns
    early = Scanner(tmp_path, now_ns=lambda: written_ns + 1_999_999_999)
    assert only(early.scan()) is not only(early.scan())
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


def test_a_workspace_whose_status_alone_goes_is_none(tmp_path: Path) -> None:
    folder = finished(tmp_path, "one", report={"a": 1})
    settle(tmp_path)
    scanner = Scanner(tmp_path)
    only(scanner.scan())
    (folder / "status.json").unlink()
    result = scanner.scan()
    assert (ids(result), result.workspaces, result.problems) == ([], 0, ())


def test_loading_gives_the_state_of_the_moment(tmp_path: Path) -> None:
    finished(tmp_path, "one")
    candidate = only(Scanner(tmp_path).scan())
    write_workspace(tmp_path, "one", status="merged", repo="go-io", now=NOW + timedelta(seconds=1), runs=3)
    record = candidate.load()
    assert record is not None
    assert record.fingerprint != candidate.fingerprint
    assert record.core_fingerprint == "2026-04-14T12:00:01Z#3"
    assert body(candidate)["status"] == "merged"


# -- what it costs -------------------------------------------------------------------------------------------------


OTHERS = frozenset(("Decoder.decode", "Encoder.encode", "openssl_sha256", "HASH.hexdigest"))
OPENED = {"open": 1, "fstat": 1, "read": 1, "close": 1, "Decoder.decode": 1}


def calls(act: Callable[[], object]) -> Counter[str]:
    """Count the calls of the system, of JSON and of hashes while something is done."""
    counted = Counter[str]()

    def count(_frame: FrameType, event: str, called: object) -> None:
        if event != "c_call":
            return
        name = getattr(called, "__qualname__", "")
        if getattr(called, "__module__", "") == "posix" or name in OTHERS:
            counted[name] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        act()
    finally:
        sys.setprofile(before)
    return counted


def each(root: Path, *, status: str = "completed", report: Mapping[str, object] | None) -> tuple[Counter[str], ...]:
    """Return what each of ten more workspaces in a folder adds to the calls of a first scan, and of the next."""
    found: list[list[Counter[str]]] = []
    for numbers in (range(2), range(2, 12)):
        for number in numbers:
            finished(root, f"core/go-io/task-{number}", status=status, report=report)
        settle(root)
        scanner = Scanner(root)
        found.append([calls(scanner.scan), calls(scanner.scan)])
    added = [more - few for few, more in zip(*found, strict=True)]
    assert all(value % 10 == 0 for one in added for value in one.values())
    return tuple(Counter({name: value // 10 for name, value in one.items()}) for one in added)


def test_a_first_scan_opens_reads_and_decodes_each_file_once_and_hashes_once(tmp_path: Path) -> None:
    cold, warm = each(tmp_path, report={"passed": True, "findings": [{"line": 1}]})
    both = Counter(OPENED) + Counter(OPENED)
    # The findings are encoded by themselves, and as a part of the record. A report may lie behind a link: lstat.
    assert cold == both + Counter({"lstat": 1, "Encoder.encode": 2, "openssl_sha256": 1, "HASH.hexdigest": 1})
    assert warm == {"stat": 2}


def test_a_report_that_is_not_there_costs_one_call(tmp_path: Path) -> None:
    cold, warm = each(tmp_path, report=None)
    assert cold == Counter(OPENED) + Counter({"open": 1, "Encoder.encode": 1, "openssl_sha256": 1, "HASH.hexdigest": 1})
    assert warm == {"stat": 1, "access": 1}


def test_of_unfinished_work_only_the_status_is_read(tmp_path: Path) -> None:
    cold, warm = each(tmp_path, status="running", report={"passed": True})
    assert cold == OPENED
    assert warm == {"stat": 1}


def test_a_folder_that_is_no_workspace_costs_a_look_and_is_listed(tmp_path: Path) -> None:
    found: list[Counter[str]] = []
    for count in (2, 3):
        (tmp_path / f"workspace/core/go-io/none-{count}").mkdir(parents=True)
        found += [calls(Scanner(tmp_path).scan)]
    assert found[1] - found[0] == {"open": 1, "scandir": 1}
