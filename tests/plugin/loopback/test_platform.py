import msgspec
import pytest

from plugin.loopback.platform import LoopbackPlatform, RateWindow
from plugin.secret import Secret
from plugin.web import Answer, Web
from tests.support.client import opened
from tests.support.clock import FakeClock

TOKEN = "loopback-token"


def batch(*ids: str, agent: str = "a") -> bytes:
    return msgspec.json.encode({"agent_id": agent, "dispatches": [{"id": i, "repo": "r"} for i in ids]})


async def post(
    web: Web, platform: LoopbackPlatform, body: bytes, *, key: str | None = None, token: str | None = TOKEN
) -> Answer:
    return await web.request(
        "POST",
        f"{platform.url}/v1/agent/sync",
        token=None if token is None else Secret(token),
        body=body,
        headers=None if key is None else {"Idempotency-Key": key},
    )


async def get(web: Web, platform: LoopbackPlatform, route: str, **query: str) -> Answer:
    return await web.request("GET", f"{platform.url}/v1/agent/{route}", query=query, token=Secret(TOKEN))


def synced(answer: Answer) -> int:
    assert answer.status == 201
    return msgspec.json.decode(answer.body, type=dict[str, dict[str, int]])["data"]["synced"]


class Context(msgspec.Struct):
    data: list[dict[str, str]]
    total: int


class Problem(msgspec.Struct):
    message: str
    error: str | None = None
    errors: dict[str, list[str]] = {}


def problem(answer: Answer) -> Problem:
    return msgspec.json.decode(answer.body, type=Problem)


async def test_records_are_kept_in_order_with_their_agent_and_key() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        assert synced(await post(web, platform, batch("1", "2"), key="k")) == 2
        assert synced(await post(web, platform, batch("3", agent="b"))) == 1
        kept = [(record.id, record.agent, record.key, record.arrival) for record in platform.records]
        assert kept == [("1", "a", "k", 0), ("2", "a", "k", 0), ("3", "b", None, 1)]
        assert platform.records[0].body == {"id": "1", "repo": "r"}
        assert [arrival.ids for arrival in platform.pushes] == [("1", "2"), ("3",)]


async def test_records_without_repo_and_workspace_are_skipped_and_not_counted() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        body = b'{"agent_id":"a","dispatches":[{"id":"1"},{"id":"2","workspace":"w"},{"id":3,"repo":""}]}'
        assert synced(await post(web, platform, body)) == 1
        assert [record.id for record in platform.records] == ["2"]
        assert platform.arrivals[0].ids == ("1", "2", "3")


async def test_the_same_key_has_its_effect_once_and_the_same_answer() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        for _ in range(3):
            assert synced(await post(web, platform, batch("1", "2"), key="k")) == 2
        assert len(platform.records) == 2
        assert synced(await post(web, platform, batch("1", "2"), key="other")) == 2
        assert len(platform.records) == 4


async def test_the_same_key_with_another_body_is_refused_when_keys_are_strict() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        await post(web, platform, batch("1"), key="k")
        answer = await post(web, platform, batch("2"), key="k")
        assert answer.status == 422
        assert list(problem(answer).errors) == ["Idempotency-Key"]
        platform.strict_keys = False
        assert synced(await post(web, platform, batch("2"), key="k")) == 1
        assert [record.id for record in platform.records] == ["1"]


async def test_without_deduplication_every_post_inserts() -> None:
    async with LoopbackPlatform(deduplicate=False) as platform, opened() as web:
        for _ in range(2):
            assert synced(await post(web, platform, batch("1"), key="k")) == 1
        assert [record.key for record in platform.records] == ["k", "k"]


@pytest.mark.parametrize("token", [None, "wrong", "", "Loopback-Token"])
async def test_an_unknown_token_is_refused(token: str | None) -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        answer = await post(web, platform, batch("1"), token=token)
        assert (answer.status, problem(answer).error) == (401, "unauthorised")
        assert platform.records == []
        assert len(platform.arrivals) == 1


async def test_tokens_can_be_replaced_while_it_runs() -> None:
    async with LoopbackPlatform(tokens=("old", "second")) as platform, opened() as web:
        assert (await post(web, platform, batch("1"), token="second")).status == 201
        platform.tokens = {"new"}
        assert (await post(web, platform, batch("1"), token="old")).status == 401
        assert (await post(web, platform, batch("1"), token="new")).status == 201


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b'{"dispatches":[]}', 422, "agent_id"),
        (b'{"agent_id":"","dispatches":[]}', 422, "agent_id"),
        (b'{"agent_id":7,"dispatches":[]}', 422, "agent_id"),
        (b'{"agent_id":"%s","dispatches":[]}' % (b"x" * 256), 422, "agent_id"),
        (b'{"agent_id":"a"}', 422, "dispatches"),
        (b'{"agent_id":"a","dispatches":{}}', 422, "dispatches"),
        (b'{"agent_id":"a","dispatches":["text"]}', 422, "dispatches"),
        (b"not json", 400, None),
        (b"", 400, None),
        (b'{"agent_id":"a","dispatches":[]} trailing', 400, None),
    ],
)
async def test_a_body_that_is_not_the_contract_is_refused(body: bytes, status: int, field: str | None) -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        answer = await post(web, platform, body)
        assert answer.status == status
        assert list(problem(answer).errors) == ([] if field is None else [field])


async def test_the_longest_agent_id_passes() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        assert synced(await post(web, platform, batch("1", agent="x" * 255))) == 1
        assert (await get(web, platform, "status", agent_id="x" * 255)).status == 200
        assert (await get(web, platform, "status", agent_id="x" * 256)).status == 422
        assert (await get(web, platform, "context", agent_id="x" * 256)).status == 422
        assert (await get(web, platform, "context")).status == 422


async def test_a_poisoned_record_refuses_its_whole_batch_until_it_is_cured() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        platform.poison.add("2")
        answer = await post(web, platform, batch("1", "2", "3"), key="k")
        assert answer.status == 422
        assert list(problem(answer).errors) == ["dispatches.1"]
        assert platform.records == []
        platform.poison.clear()
        assert synced(await post(web, platform, batch("1", "2", "3"), key="k")) == 3


async def test_too_much_at_once_is_413() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        platform.max_bytes = len(batch("1"))
        assert (await post(web, platform, batch("1"))).status == 201
        assert (await post(web, platform, batch("11"))).status == 413
        platform.max_bytes, platform.max_records = None, 2
        assert (await post(web, platform, batch("1", "2"))).status == 201
        assert (await post(web, platform, batch("1", "2", "3"))).status == 413


def row(name: str, day: int, **more: str) -> dict[str, str]:
    return {"id": name, "created_at": f"2023-11-{day:02}T00:00:00Z", **more}


async def rows(web: Web, platform: LoopbackPlatform, **query: str) -> list[str]:
    context = msgspec.json.decode((await get(web, platform, "context", agent_id="a", **query)).body, type=Context)
    assert context.total >= len(context.data)
    return [found["id"] for found in context.data]


async def test_context_is_newest_first_for_the_agent_and_not_expired() -> None:
    async with LoopbackPlatform(clock=FakeClock()) as platform, opened() as web:
        platform.context_rows = [
            row("old", 1),
            row("new", 3, agent_id="a"),
            row("other", 3, agent_id="b"),
            row("gone", 2, expires_at="2023-11-14T22:13:20Z"),
            row("going", 2, expires_at="2023-11-14T22:13:21Z"),
        ]
        assert await rows(web, platform) == ["new", "going", "old"]


async def test_since_is_inclusive_and_unreadable_ones_are_ignored() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        platform.context_rows = [row("1", 1), row("2", 2), row("3", 3)]
        assert await rows(web, platform, since="2023-11-02T01:00:00+01:00") == ["3", "2"]
        assert await rows(web, platform, since="2023-11-02") == ["3", "2"]
        assert await rows(web, platform, since="yesterday") == ["3", "2", "1"]


async def test_at_most_25_rows_are_served() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        platform.context_rows = [row(str(day), day) for day in range(1, 31)]
        assert await rows(web, platform) == [str(day) for day in range(30, 5, -1)]


async def test_status_says_what_it_was_told_and_when_the_agent_was_here() -> None:
    async with LoopbackPlatform(clock=FakeClock()) as platform, opened() as web:
        platform.status["a"] = "working"
        before = (await get(web, platform, "status", agent_id="a")).body
        await post(web, platform, batch("1"))
        await get(web, platform, "context", agent_id="a")
        after = (await get(web, platform, "status", agent_id="a")).body
        kind = dict[str, dict[str, str | None]]
        assert msgspec.json.decode(before, type=kind)["data"] == {
            "agent_id": "a",
            "status": "working",
            "last_push_at": None,
            "last_pull_at": None,
        }
        stamp = "2023-11-14T22:13:20+00:00"
        assert msgspec.json.decode(after, type=kind)["data"] == {
            "agent_id": "a",
            "status": "working",
            "last_push_at": stamp,
            "last_pull_at": stamp,
        }


async def test_every_answer_says_what_is_left_of_the_limit() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        for token in (TOKEN, "wrong"):
            headers = (await post(web, platform, batch("1"), token=token)).headers
            assert {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"} <= set(headers)


async def test_a_token_is_held_to_its_calls_in_each_window() -> None:
    clock = FakeClock()
    rate = RateWindow(calls=2, seconds=60)
    async with LoopbackPlatform(clock=clock, rate=rate, tokens=("1", "2")) as platform, opened() as web:
        left = [await post(web, platform, batch("1"), token="1") for _ in range(3)]
        assert [answer.status for answer in left] == [201, 201, 429]
        assert [answer.headers["x-ratelimit-remaining"] for answer in left] == ["1", "0", "0"]
        assert left[0].headers["x-ratelimit-limit"] == "2"
        assert left[2].headers["retry-after"] == "60"
        assert left[2].headers["x-ratelimit-reset"] == str(round(clock.now() + 60))
        assert problem(left[2]).error == "rate_limited"
        assert (await post(web, platform, batch("1"), token="2")).status == 201
        await clock.advance(60)
        assert (await post(web, platform, batch("1"), token="1")).status == 201


async def test_a_platform_that_lost_its_rows_has_forgotten_the_keys_too() -> None:
    async with LoopbackPlatform() as platform, opened() as web:
        platform.context_rows = [row("1", 1)]
        await post(web, platform, batch("1"), key="k")
        platform.lose_rows()
        assert platform.records == []
        assert await rows(web, platform) == []
        await post(web, platform, batch("1"), key="k")
        assert len(platform.records) == 1
