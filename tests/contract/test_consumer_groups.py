"""Contract: members of a consumer group share the buckets of a table; offsets are committed, told, reset and forgotten by name."""

from __future__ import annotations

import threading
import time

import pytest

from flashlake.supervisor.status import consumer_lines
from storage_engine.errors import OffsetOutOfRange, ProgressConflict, StatementRefused, UnknownTable, UserError
from storage_engine.schema.descriptor import TableBucket
from tests.waiting import await_true

pytestmark = pytest.mark.needs("consumers")


@pytest.fixture
def log(store, db):
    store.execute(f"CREATE TABLE {db}.log (x BIGINT) WITH ('bucket.num' = '4', 'bucket.key' = 'x')")
    return store.table(f"{db}.log")


def xs(rows) -> list[int]:
    return [] if rows is None else rows["x"].to_pylist()


def polled(*consumers) -> list[list[int]]:
    """What each reads until none gets anything more; one round first lets each notice the others."""
    found: list[list[int]] = [[] for _ in consumers]
    while True:
        rounds = [xs(consumer.poll()) for consumer in consumers]
        for mine, rows in zip(found, rounds, strict=True):
            mine += rows
        if not any(rounds):
            return found


def settled(*consumers) -> None:
    """Let every member notice all others."""
    for _ in range(2):
        for consumer in consumers:
            consumer.poll(max_rows=0)


def test_members_share_the_buckets_and_every_row_is_read_by_one_of_them(shared, log):
    members = [log.consumer("g", member="a"), shared.peer().table(log.name).consumer("g", member="b")]
    settled(*members)
    log.append({"x": list(range(200))})

    first, second = polled(*members)
    for member in members:
        member.commit()

    assert first
    assert second
    assert sorted(first + second) == list(range(200))
    assert members[0].members == members[1].members == ("a", "b")
    assert log.consumer("g").lag() == 0


def test_a_commit_of_a_member_with_an_old_generation_is_refused_and_its_rows_are_read_again(log):
    log.append({"x": list(range(100))})
    first = log.consumer("g", member="a")
    assert len(xs(first.poll())) == 100

    second = log.consumer("g", member="b")
    settled(second)
    with pytest.raises(ProgressConflict, match="new generation"):
        first.commit()
    settled(first, second)
    mine, theirs = polled(first, second)
    first.commit()
    second.commit()

    assert sorted(mine + theirs) == list(range(100))
    assert log.consumer("g").lag() == 0


def test_a_member_that_leaves_gives_its_buckets_free_at_once(log):
    first, second = log.consumer("g", member="a"), log.consumer("g", member="b")
    settled(first, second)
    second.close()

    log.append({"x": list(range(50))})

    assert sorted(polled(first)[0]) == list(range(50))
    assert first.members == ("a",)


def test_a_dead_member_is_replaced_after_its_session_and_what_it_committed_is_kept(log):
    living = log.consumer("g", member="a", session_timeout_s=30)
    dying = log.consumer("g", member="b", session_timeout_s=0.4)
    settled(living, dying)
    log.append({"x": list(range(100))})
    done = xs(dying.poll())
    dying.commit()
    left: list[int] = xs(living.poll())
    living.commit()
    log.append({"x": list(range(100, 200))})

    def is_read_by_the_living() -> bool:
        left.extend(xs(living.poll()))
        log.append({"x": [-1]})  # any commit makes an idle member look
        return len({x for x in left if x >= 100}) == 100

    await_true(is_read_by_the_living)

    assert not set(done) & set(left)
    assert sorted({x for x in done + left if x >= 0}) == list(range(200))
    dying.poll()
    with pytest.raises(ProgressConflict):
        living.commit()


def test_one_reader_of_a_name_is_fenced_by_a_group_that_begins_and_fences_it(log):
    log.append({"x": [1, 2, 3]})
    alone = log.consumer("g")
    alone.poll()
    member = log.consumer("g", member="a")
    member.poll()

    with pytest.raises(ProgressConflict):
        alone.commit()
    member.commit()

    log.append({"x": [4]})
    other = log.consumer("g")
    assert xs(other.poll()) == [4]
    other.commit()
    member.poll()
    with pytest.raises(ProgressConflict):
        member.commit()


def test_a_poll_waits_for_rows_and_returns_as_soon_as_they_are_there(shared, log):
    consumer = log.consumer("g", member="a")
    assert consumer.poll() is None
    peer = shared.peer().table(log.name)
    writer = threading.Timer(0.2, lambda: peer.append({"x": [7]}))
    writer.start()

    began = time.monotonic()
    rows = consumer.poll(timeout_s=30)
    writer.join()

    assert xs(rows) == [7]
    assert time.monotonic() - began < 15


def test_an_idle_poll_asks_for_nothing_but_the_version(store, log, monkeypatch):
    log.append({"x": [1]})
    consumer = log.consumer("g")
    assert consumer.poll() is not None
    asked: list[str] = []
    for name in ("offsets", "fetch", "partitions", "progress", "heartbeat"):
        monkeypatch.setattr(store.backend, name, lambda *_, name=name, **__: asked.append(name))

    assert all(consumer.poll() is None for _ in range(100))

    assert asked == []


def test_offsets_are_reset_to_the_ends_and_to_given_offsets_and_members_follow(store, log):
    log.append({"x": list(range(100))})
    ends = log.offsets()
    consumer = log.consumer("g", member="a")
    polled(consumer)
    consumer.commit()
    assert consumer.lag() == 0

    store.execute(f"RESET CONSUMER g ON {log.name} TO EARLIEST")
    assert sorted(polled(consumer)[0]) == list(range(100))
    consumer.commit()
    some = next(bucket for bucket, end in ends.items() if end)
    log.append({"x": [1000]})
    consumer.poll()
    store.execute(f"RESET CONSUMER g ON {log.name} TO OFFSETS ('{some}' = '{ends[some] - 1}')")
    with pytest.raises(ProgressConflict):
        consumer.commit()
    again = polled(consumer)[0]
    consumer.commit()
    log.consumer("new").reset("latest")

    assert len(again) == 2
    assert 1000 in again
    assert log.consumer("new").lag() == 0
    assert log.consumer("new").poll() is None


def test_a_reset_of_a_name_that_is_not_there_begins_it_and_says_so(store, log):
    log.append({"x": [1]})

    [begun] = store.execute(f"RESET CONSUMER typo ON {log.name} TO EARLIEST")
    [moved] = store.execute(f"RESET CONSUMER typo ON {log.name} TO LATEST")

    assert "is new: it begins at" in begun.message
    assert "goes on from" in moved.message


def test_a_reset_is_refused_where_the_log_does_not_reach(store, log):
    log.append({"x": [1]})
    for offsets in ("'/0' = '100'", "'/77' = '0'", "'none/0' = '0'"):
        with pytest.raises(OffsetOutOfRange, match="cannot be set"):
            store.execute(f"RESET CONSUMER g ON {log.name} TO OFFSETS ({offsets})")
    with pytest.raises(StatementRefused, match="is not a time"):
        store.execute(f"RESET CONSUMER g ON {log.name} TO TIMESTAMP 'yesterday'")
    with pytest.raises(StatementRefused, match="cannot be reset to NEWEST"):
        store.execute(f"RESET CONSUMER g ON {log.name} TO NEWEST")
    with pytest.raises(UserError, match="cannot name a consumer"):
        log.consumer("a:b")


def test_groups_are_listed_described_and_dropped_by_statements(store, log):
    log.append({"x": list(range(40))})
    one, two = log.consumer("g", member="a"), log.consumer("g", member="b")
    settled(one, two)
    one.poll()
    one.commit()

    listed = store.execute(f"SHOW CONSUMERS ON {log.name}")[0].rows.to_pylist()
    described = store.execute(f"DESCRIBE CONSUMER g ON {log.name}")[0].rows.to_pylist()
    store.execute(f"DROP CONSUMER g ON {log.name}; DROP CONSUMER IF EXISTS g ON {log.name}")

    assert [(row["consumer"], row["table"], row["members"]) for row in listed] == [("g", log.name, 2)]
    assert listed[0]["lag_rows"] == sum(row["lag_rows"] for row in described) > 0
    assert listed[0]["lag_ms"] >= 0
    assert {row["member"] for row in described} == {"a", "b"}
    assert all((row["lag_rows"] == 0) == (row["member"] == "a") for row in described)
    assert store.execute(f"SHOW CONSUMERS ON {log.name}")[0].rows.num_rows == 0
    with pytest.raises(UnknownTable, match="there is no consumer g"):
        store.execute(f"DESCRIBE CONSUMER g ON {log.name}")
    with pytest.raises(UnknownTable):
        store.execute(f"DROP CONSUMER g ON {log.name}")


def test_a_member_of_a_dropped_group_begins_anew(store, log):
    log.append({"x": [1, 2, 3]})
    consumer = log.consumer("g", member="a")
    polled(consumer)
    consumer.commit()

    store.execute(f"DROP CONSUMER g ON {log.name}")

    assert sorted(polled(consumer)[0]) == [1, 2, 3]
    consumer.commit()
    assert log.consumer("g").lag() == 0


def test_a_group_goes_on_over_a_restart_of_the_store_under_a_later_generation(own):
    own.store.execute("CREATE TABLE a.log (x BIGINT) WITH ('bucket.num' = '4', 'bucket.key' = 'x')")
    log = own.store.table("a.log")
    log.append({"x": list(range(50))})
    member = log.consumer("g", member="a")
    polled(member)
    member.commit()
    before = own.store.progress("consumer:")["consumer:g:a.log"].detail["generation"]

    own.restart()
    log = own.store.table("a.log")
    log.append({"x": [50]})
    again = log.consumer("g", member="a")

    assert polled(again) == [[50]]
    again.commit()
    assert own.store.progress("consumer:")["consumer:g:a.log"].detail["generation"] > before


def test_lag_in_time_is_the_age_of_the_oldest_row_not_committed(log):
    consumer = log.consumer("g")
    assert consumer.lag_ms() == 0
    log.append({"x": [1]})
    await_true(lambda: consumer.lag_ms() >= 20)

    consumer.poll()
    assert consumer.lag_ms() > 0
    consumer.commit()

    assert (consumer.lag_ms(), consumer.lag()) == (0, 0)


def test_members_share_partitions_that_come_later(store, db):
    store.execute(f"CREATE TABLE {db}.days (x BIGINT, day STRING) PARTITIONED BY (day)")
    days = store.table(f"{db}.days")
    members = [days.consumer("g", member=name) for name in "ab"]
    settled(*members)

    for day in range(12):
        days.append({"x": [day], "day": [f"d{day}"]})
    first, second = polled(*members)
    for member in members:
        member.commit()

    assert first
    assert second
    assert sorted(first + second) == list(range(12))
    committed = store.progress("consumer:")[f"consumer:g:{days.name}"].offsets[days.name]
    assert committed == {TableBucket(f"d{day}", 0): 1 for day in range(12)}


def test_consumers_of_a_dropped_table_are_gone_with_it(store, log):
    log.append({"x": [1]})
    consumer = log.consumer("g")
    consumer.poll()
    consumer.commit()

    store.execute(f"DROP TABLE {log.name}")

    assert store.progress(f"consumer:g:{log.name}") == {}
    assert log.name not in store.execute("SHOW CONSUMERS")[0].rows["table"].to_pylist()


def test_the_status_page_shows_consumers_with_their_lag(store, log):
    log.append({"x": [1, 2, 3]})
    log.consumer("g", member="a").poll()

    (shown,) = [line for line in consumer_lines(store) if line["name"] == f"g on {log.name}"]

    assert (shown["kind"], shown["lag_rows"]) == ("consumer", 3)
    assert shown["detail"].startswith("1 members; oldest row not committed: ")
