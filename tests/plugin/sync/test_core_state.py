"""What the Go agent left is read: queue, ledger, context, history and times; what is broken is said and left alone."""

import json
import os
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from plugin.loopback.workspaces import write_workspace
from plugin.store.interface import AgentTimes, CoreState, HistoryEntry
from plugin.sync.core import MAX_BYTES, read_core_state
from plugin.sync.record import UNSET_TIME
from plugin.sync.scan import Candidate, Scanner
from tests.support.core import NAME, TIME, TIME_MS, Core, entry, ids, scanned_as_in_go


@pytest.fixture
def core(tmp_path: Path) -> Core:
    return Core(tmp_path / "root")


def on_disk(
    root: Path, name: str = NAME, *, report: Mapping[str, object] | None = None, **changes: object
) -> Candidate:
    """Write the workspace of that record, and return it as a scan finds it."""
    folder = write_workspace(root, name, status="completed", repo="go-io", now=datetime.now(UTC), report=report)
    (folder / "status.json").write_text(json.dumps(scanned_as_in_go(name, **changes)))
    (candidate,) = Scanner(root).scan().candidates
    return candidate


# -- the queue -----------------------------------------------------------------------------------------------------


def test_without_anything_there_is_an_empty_state_and_no_problem(tmp_path: Path) -> None:
    state, problems = read_core_state(tmp_path / "none", tmp_path / "none/sync", agent_id="codex")
    none = AgentTimes(last_push_ms=None, last_pull_ms=None)
    assert state == CoreState(queue=(), ledger=(), context=(), history=(), times=none)
    assert problems == ()
    assert not (tmp_path / "none").exists()


def test_the_queue_keeps_order_agent_node_time_and_ids(core: Core) -> None:
    core.write(
        "queue.json",
        [
            entry({"id": "b", "repo": "r"}, {"workspace": "a"}, fleet_node_id=42, attempts=3),
            entry({"id": 7, "repo": "r"}, agent="claude", queued_at="2026-04-14T13:00:00Z"),
            entry({"id": "c", "repo": "r"}, agent="", next_attempt="2026-04-14T13:00:00Z"),
            entry(),
            {"agent_id": "codex", "dispatches": None},
        ],
    )
    state, problems = core.read()
    assert [(agent, record.id, record.fleet_node_id, queued_ms) for agent, record, queued_ms in state.queue] == [
        ("codex", "b", 42, TIME_MS),
        ("codex", "a", 42, TIME_MS),
        ("claude", "7", None, 1_776_171_600_000),
        ("fallback", "c", None, TIME_MS),
    ]
    assert problems == ()


@pytest.mark.parametrize("queued_at", [UNSET_TIME, ""])
def test_an_entry_without_a_time_was_queued_when_its_file_was_written(core: Core, queued_at: str) -> None:
    core.write("queue.json", [entry({"repo": "r"}, queued_at=queued_at)])
    os.utime(core.sync / "queue.json", (1_700_000_000, 1_700_000_000))
    state, problems = core.read()
    assert [queued_ms for _, _, queued_ms in state.queue] == [1_700_000_000_000]
    assert problems == ()


def test_a_queued_record_is_the_one_that_a_scan_would_make(core: Core) -> None:
    report = {"passed": True, "score": 0.5, "findings": [{"line": 3}], "changes": {"files": 1}}
    candidate = on_disk(core.root, report=report)
    lifted = {"report": report, "findings": report["findings"], "changes": report["changes"]}
    core.write("queue.json", [entry(scanned_as_in_go(runs=3.0) | lifted)])
    state, _ = core.read()
    ((_, record, _),) = state.queue
    assert record == candidate.load()


def test_the_same_record_queued_again_and_again_is_taken_once_for_each_agent(core: Core) -> None:
    same = scanned_as_in_go()
    core.write(
        "queue.json", [entry(same), entry(same, {"repo": "r"}), entry({"repo": "r"}), entry(same, agent="claude")]
    )
    state, problems = core.read()
    assert [(agent, record.body[:9]) for agent, record, _ in state.queue] == [
        ("codex", b'{"agent":'),
        ("codex", b'{"id":"' + state.queue[1][1].id[:2].encode()),
        ("claude", b'{"agent":'),
    ]
    assert problems == ()


@pytest.mark.parametrize("text", [f"{TIME}#0", "2026-04-14T12:00:00Z#3"])
def test_a_scanned_record_that_the_ledger_shows_as_delivered_is_not_sent_again(core: Core, text: str) -> None:
    newer = scanned_as_in_go(updated_at="2026-04-14T13:00:01+01:00")
    core.write("queue.json", [entry(scanned_as_in_go(), newer, scanned_as_in_go("core/go-io/task-6"))])
    core.write("ledger.json", {NAME: text})
    state, _ = core.read()
    assert [(record.id, record.core_fingerprint) for _, record, _ in state.queue] == [
        (NAME, "2026-04-14T12:00:01Z#3"),
        ("core/go-io/task-6", "2026-04-14T12:00:00Z#3"),
    ]


def test_what_somebody_queued_by_hand_is_sent_whatever_the_ledger_says(core: Core) -> None:
    core.write("queue.json", [entry({"id": "a", "repo": "r"}, {"id": "b", "repo": "r", "updated_at": TIME})])
    core.write("ledger.json", {"a": "#0", "b": f"{TIME}#0"})
    assert ids(core.read()[0]) == ["a", "b"]


def test_what_the_platform_would_drop_is_said_and_its_neighbours_are_taken(core: Core) -> None:
    core.write("queue.json", [entry({"id": "a", "repo": "r"}, {"id": "b"}, None, "text", {"id": "c", "repo": "r"})])
    state, problems = core.read()
    assert ids(state) == ["a", "c"]
    assert [problem.text.split(":")[0] for problem in problems] == ["entry 0"] * 3
    assert [number for number in (1, 2, 3) if f"dispatches[{number}]" in problems[number - 1].text] == [1, 2, 3]


def test_a_broken_entry_is_said_and_the_others_are_taken(core: Core) -> None:
    good = {"id": "a", "repo": "r"}
    core.write(
        "queue.json",
        [5, entry(good, fleet_node_id="x"), {"dispatches": {"id": "z"}}, entry(good, queued_at="soon"), None],
    )
    state, problems = core.read()
    assert ids(state) == ["a"]
    assert [problem.text.split(":")[0] for problem in problems] == [
        "entry 0",
        "entry 1",
        "entry 2",
        "entry 3",
        "entry 4",
    ]


def test_a_time_in_a_record_that_is_none_leaves_the_record_whole(core: Core) -> None:
    core.write("queue.json", [entry(scanned_as_in_go(updated_at="soon")), entry({"repo": "r", "updated_at": 5})])
    state, problems = core.read()
    assert [record.core_fingerprint for _, record, _ in state.queue] == [None, None]
    assert problems == ()


# -- the database --------------------------------------------------------------------------------------------------


def test_the_row_in_the_database_wins_over_the_file(core: Core) -> None:
    core.write("queue.json", [entry({"id": "file", "repo": "r"})])
    core.database([entry({"id": "row", "repo": "r"})]).close()
    before = core.files()
    state, problems = core.read()
    assert (ids(state), problems) == (["row"], ())
    assert core.files() == before, "reading leaves the files as they are, and none beside them"


def test_a_row_that_only_the_journal_has_is_read_while_the_go_agent_runs(core: Core) -> None:
    with closing(core.database([])) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        row = json.dumps([entry({"id": "row", "repo": "r"})])
        database.execute("UPDATE entries SET entry_value = ? WHERE entry_key = 'queue'", (row,))
        before = core.files()
        state, problems = core.read()
        assert (ids(state), problems) == (["row"], ())
        assert core.files().keys() == before.keys()
        database.execute("UPDATE entries SET entry_value = '[]' WHERE entry_key = 'queue'")
        assert ids(core.read()[0]) == []


def test_a_row_is_read_after_the_go_agent_was_killed(core: Core) -> None:
    with closing(core.database([entry({"id": "row", "repo": "r"})])):
        left = core.files()
    for path, data in left.items():
        Path(path).write_bytes(data)
    (core.root / "db.duckdb-shm").unlink()
    assert ids(core.read()[0]) == ["row"]


@pytest.mark.parametrize("row", ["[]", "null", b" []"])
def test_an_empty_row_is_an_empty_queue(core: Core, row: str | bytes) -> None:
    core.write("queue.json", [entry({"id": "file", "repo": "r"})])
    core.database(row).close()
    assert ids(core.read()[0]) == []


@pytest.mark.parametrize(("row", "said"), [("", 0), ("[{", 1), ('{"a":1}', 1), ("5", 1), (b"\xff\xfe", 1)])
def test_a_row_that_is_no_queue_is_said_and_the_file_is_taken(core: Core, row: str | bytes, said: int) -> None:
    core.write("queue.json", [entry({"id": "file", "repo": "r"})])
    core.database(row).close()
    state, problems = core.read()
    assert ids(state) == ["file"]
    assert [problem.path for problem in problems] == [str(core.root / "db.duckdb")] * said


def test_a_database_without_the_table_or_the_row_is_no_problem(core: Core) -> None:
    core.write("queue.json", [entry({"id": "file", "repo": "r"})])
    core.database([], table="others").close()
    assert (ids(core.read()[0]), core.read()[1]) == (["file"], ())
    (core.root / "db.duckdb").unlink()
    with closing(core.database([])) as database:
        database.execute("DELETE FROM entries")
    assert (ids(core.read()[0]), core.read()[1]) == (["file"], ())


@pytest.mark.parametrize("data", [b"DUCK of another kind" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_no_such_database_is_said_and_left_alone(core: Core, data: bytes) -> None:
    core.write("queue.json", [entry({"id": "file", "repo": "r"})])
    (core.root / "db.duckdb").write_bytes(data)
    before = core.files()
    state, problems = core.read()
    assert ids(state) == ["file"]
    assert [problem.path for problem in problems] == [str(core.root / "db.duckdb")]
    assert core.files() == before


# -- the ledger ----------------------------------------------------------------------------------------------------


def test_the_ledger_says_of_a_delivered_workspace_what_a_scan_says(core: Core) -> None:
    candidate = on_disk(core.root)
    core.write("ledger.json", {NAME: "2026-04-14T12:00:00Z#3", "gone": "2026-04-14T12:00:00Z#1"})
    assert dict(core.read()[0].ledger) == {NAME: candidate.core_fingerprint, "gone": "2026-04-14T12:00:00Z#1"}


def test_a_workspace_delivered_from_the_queue_is_known_too(core: Core) -> None:
    candidate = on_disk(core.root)
    core.write("ledger.json", {NAME: f"{TIME}#0"})
    assert core.read()[0].ledger == ((NAME, candidate.core_fingerprint),)


def test_a_workspace_that_changed_since_it_was_delivered_is_not_known(core: Core) -> None:
    candidate = on_disk(core.root, updated_at="2026-04-14T13:00:00.5+01:00")
    core.write("ledger.json", {NAME: f"{TIME}#0"})
    assert core.read()[0].ledger != ((NAME, candidate.core_fingerprint),)


def test_more_runs_in_the_same_second_are_not_known(core: Core) -> None:
    on_disk(core.root, updated_at="2026-04-14T12:00:00Z", runs=2)
    core.write("ledger.json", {NAME: "2026-04-14T12:00:00Z#1"})
    assert core.read()[0].ledger == ((NAME, "2026-04-14T12:00:00Z#1"),)


def test_a_ledger_that_names_a_folder_elsewhere_reads_nothing_there(core: Core) -> None:
    on_disk(core.root)
    (core.root / "workspace" / NAME).rename(core.root / "elsewhere")
    core.write("ledger.json", {"../elsewhere": f"{TIME}#0"})
    assert core.read()[0].ledger == (("../elsewhere", f"{TIME}#0"),)


@pytest.mark.parametrize("text", ["", "#0", "#", "soon#0", f"{TIME}#", f"{TIME}#x", "0"])
def test_odd_ledger_texts_are_kept_as_they_are(core: Core, text: str) -> None:
    folder = on_disk(core.root).id
    (core.root / "workspace" / folder / "status.json").write_text('{"status":"completed","updated_at":"soon"}')
    core.write("ledger.json", {NAME: text, "../../etc": f"{TIME}#0"})
    assert core.read()[0].ledger == ((NAME, text), ("../../etc", f"{TIME}#0"))


def test_ledger_entries_of_another_kind_are_said(core: Core) -> None:
    core.write("ledger.json", {"a": 5, "b": "x#1", "c": None})
    state, problems = core.read()
    assert state.ledger == (("b", "x#1"),)
    assert len(problems) == 2


# -- the rest ------------------------------------------------------------------------------------------------------


def test_context_rows_come_in_order_with_their_ids_and_ends(core: Core) -> None:
    core.write(
        "context.json",
        [
            {"id": "m1", "content": "ü", "expires_at": "2026-04-14T13:00:00Z"},
            {"id": 2, "expires_at": None},
            "text",
            {"content": "x", "expires_at": "soon"},
        ],
    )
    state, problems = core.read()
    assert [row.id for row in state.context][:2] == ["m1", "2"]
    assert [row.expires_ms for row in state.context] == [1_776_171_600_000, None, None]
    assert [json.loads(row.body) for row in state.context] == [
        {"id": "m1", "content": "ü", "expires_at": "2026-04-14T13:00:00Z"},
        {"id": 2, "expires_at": None},
        {"content": "x", "expires_at": "soon"},
    ]
    assert [problem.text.split(":")[0] for problem in problems] == ["row 2", "row 3"]


def test_history_and_times_come_over(core: Core) -> None:
    push = {"direction": "push", "payload_size": 10, "items_count": 2, "synced_at": "2026-04-14T13:00:00Z"}
    core.write(
        "records.json",
        [
            push | {"agent_id": "codex", "fleet_node_id": 42},
            push | {"direction": "pull"},
            push | {"direction": "sideways"},
            push | {"synced_at": "soon"},
            {"direction": "push", "synced_at": UNSET_TIME},
            7,
        ],
    )
    core.write("status.json", {"last_push_at": "2026-04-14T14:00:00+01:00", "last_pull_at": UNSET_TIME})
    state, problems = core.read()
    at_ms = 1_776_171_600_000
    assert state.history == (
        HistoryEntry(agent_id="codex", fleet_node_id=42, direction="push", payload_bytes=10, items=2, at_ms=at_ms),
        HistoryEntry(agent_id="", fleet_node_id=None, direction="pull", payload_bytes=10, items=2, at_ms=at_ms),
    )
    assert state.times == AgentTimes(last_push_ms=at_ms, last_pull_ms=None)
    assert [problem.text.split(":")[0] for problem in problems] == ["record 2", "record 3", "record 5"]


@pytest.mark.parametrize("name", ["queue.json", "ledger.json", "context.json", "records.json", "status.json"])
@pytest.mark.parametrize("text", ["{", "5", '"text"', "[" * 100_000, '{"a":"\\ud800"}'])
def test_a_corrupt_file_is_said_and_left_alone_and_the_others_are_taken(core: Core, name: str, text: str) -> None:
    core.write("queue.json", [entry({"repo": "r"})])
    core.write("ledger.json", {"a": "x#1"})
    core.write("context.json", [{"id": "m"}])
    core.write("records.json", [{"direction": "push", "synced_at": TIME}])
    core.write("status.json", {"last_push_at": TIME})
    core.write(name, text)
    before = core.files()
    state, problems = core.read()
    taken = [state.queue, state.ledger, state.context, state.history, [1] if state.times.last_push_ms else []]
    assert [len(part) for part in taken].count(0) == 1
    assert [problem.path for problem in problems] == [str(core.sync / name)]
    assert core.files() == before


@pytest.mark.parametrize("name", ["queue.json", "ledger.json", "context.json", "records.json", "status.json"])
@pytest.mark.parametrize("text", ["", " \n", "null"])
def test_an_empty_file_is_no_problem(core: Core, name: str, text: str) -> None:
    core.write(name, text)
    assert core.read()[1] == ()


def test_a_file_that_cannot_be_read_or_is_too_large_is_said(core: Core) -> None:
    (core.sync / "queue.json").mkdir()
    os.mkfifo(core.sync / "context.json")
    core.write("ledger.json", "")
    os.truncate(core.sync / "ledger.json", MAX_BYTES + 1)
    large, *others = core.read()[1]
    assert large.path == str(core.sync / "ledger.json")
    assert str(MAX_BYTES) in large.text
    assert [problem.path for problem in others] == [str(core.sync / "queue.json"), str(core.sync / "context.json")]


def test_a_file_comes_from_the_state_folder_before_the_root(core: Core, tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    core.write("ledger.json", {"root": "x#1"})
    core.write("queue.json", [entry({"id": "root", "repo": "r"})])
    (state_dir / "queue.json").write_text(json.dumps([entry({"id": "state", "repo": "r"})]))
    state, _ = read_core_state(core.root, state_dir, agent_id="codex")
    assert (ids(state), state.ledger) == (["state"], (("root", "x#1"),))
