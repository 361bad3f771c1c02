import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from plugin.sync.record import UNSET_TIME, make_record
from plugin.sync.scan import Scanner

NAME = "core/go-io/task-5"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=4)
WORDS = ("agent", "repo", "org", "task", "branch", "process_id", "question", "pr_url")
TIMES = st.sampled_from([UNSET_TIME, "2026-04-14T12:00:00.123456789Z", "2026-04-14T12:00:00+01:00"])
STATUSES = st.fixed_dictionaries(
    {"status": st.sampled_from(["completed", "merged", "failed", "blocked"])},
    optional={
        **{word: TEXTS | st.none() for word in WORDS},
        "issue": st.integers(-(2**63), 2**64 - 1) | st.none(),
        "runs": st.integers(0, 2**40) | st.none(),
        "started_at": TIMES | st.none(),
        "updated_at": TIMES | st.none(),
        # What only a record has, and is not for a status to say.
        **dict.fromkeys(("id", "workspace", "agent_type", "report", "findings", "changes"), VALUES),
    },
)
REPORTS = st.none() | st.builds(
    dict[str, object],
    OBJECTS,
    findings=VALUES | st.lists(OBJECTS | VALUES, max_size=3) | st.lists(OBJECTS, max_size=3),
    changes=VALUES | OBJECTS,
)


def plain(status: dict[str, object], report: dict[str, object] | None) -> dict[str, object]:
    """Return what a record of a workspace says, put together as plainly as can be."""
    content: dict[str, object] = {"id": NAME, "workspace": NAME, "status": status["status"]}
    content |= {word: status.get(word) or "" for word in WORDS}
    content |= {number: status.get(number) or 0 for number in ("issue", "runs")}
    content |= {time: status.get(time) or UNSET_TIME for time in ("started_at", "updated_at")}
    if not report:
        return content
    content["report"] = report
    findings = report.get("findings")
    if isinstance(findings, list):
        objects: list[object] = [one for one in cast("list[object]", findings) if isinstance(one, Mapping)]
        content |= {"findings": objects} if objects else {}
    changes = report.get("changes")
    if isinstance(changes, dict) and changes:
        content["changes"] = changes
    return content


@settings(max_examples=100, deadline=None)
@given(STATUSES, REPORTS, st.sampled_from([None, 2]))
def test_a_scanned_record_is_the_one_made_of_the_same_content(
    status: dict[str, object], report: dict[str, object] | None, indent: int | None
) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "workspace" / NAME
        (folder / ".meta").mkdir(parents=True)
        (folder / "status.json").write_text(
            json.dumps(status, ensure_ascii=not indent, indent=indent), encoding="utf-8"
        )
        if report is not None:
            (folder / ".meta/report.json").write_text(
                json.dumps(report, ensure_ascii=not indent, indent=indent), encoding="utf-8"
            )
        result = Scanner(Path(root)).scan()
        assert result.problems == ()
        (candidate,) = result.candidates
        record = candidate.load()
        made = make_record(plain(status, report))
        assert record is not None
        assert (record.body, record.id) == (made.body, made.id)
        assert candidate.fingerprint == record.fingerprint == made.fingerprint
