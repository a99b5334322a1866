"""Consumer groups against a plain model: one owner per bucket and generation, no row lost, no offset passed over, the dead forgotten."""

from __future__ import annotations

import tempfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from storage_engine.api import CommitRequest, Progress
from storage_engine.client.consumer import KEEPALIVE_S, Consumer
from storage_engine.client.groups import member_of
from storage_engine.client.store import Store
from storage_engine.connection import wrap
from storage_engine.engine.embedded import EmbeddedBackend
from storage_engine.errors import OffsetOutOfRange, ProgressConflict
from storage_engine.schema.descriptor import TableBucket

HOUR_MS = 3_600_000
SESSION_MS = 10_000
MEMBERS = [f"m{n}" for n in range(4)]
BUCKETS = hs.builds(TableBucket, hs.sampled_from(["", "2017-01-01", "a", "b"]), hs.integers(0, 15))


class ManualClock:
    def __init__(self) -> None:
        self.now_ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now_ms


def opened(directory: Path, clock: ManualClock, **options) -> Store:
    return wrap(EmbeddedBackend.open(directory, sync="none", now_ms=clock, maintenance=False, **options))


@given(hs.lists(hs.text(min_size=1, max_size=5), min_size=1, max_size=6, unique=True), hs.integers(1, 20), hs.text(max_size=10))
def test_every_bucket_has_one_owner_and_shares_of_a_partition_differ_by_one_at_most(members, n_buckets, partition):
    owners = [member_of(TableBucket(partition, bucket), sorted(members)) for bucket in range(n_buckets)]
    shares = Counter(owners)

    assert set(owners) <= set(members)
    assert max(shares.values()) - min(shares.get(member, 0) for member in members) <= 1


class Groups(RuleBasedStateMachine):
    """Members come, poll, commit, die and return; partitions are dropped; the store restarts; offsets are reset.

    The model: rows by partition in the order written, and how many of each are committed.
    """

    @initialize()
    def open(self) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="groups")
        self.clock = ManualClock()
        self.store = opened(Path(self.directory.name) / "s", self.clock)
        self.store.execute("CREATE TABLE a.t (x BIGINT, p STRING) PARTITIONED BY (p) WITH ('bucket.num' = '2', 'bucket.key' = 'x')")
        self.n_rows = 0
        self.alive: dict[str, Consumer] = {}
        self.unread: dict[str, Counter[int]] = {}
        self.pending: dict[str, list[tuple[str, int, int]]] = {}

    @property
    def table(self):
        return self.store.table("a.t")

    def member(self, name: str) -> Consumer:
        if name not in self.alive:
            self.alive[name] = self.table.consumer("g", member=name, session_timeout_s=SESSION_MS / 1000)
            self.pending[name] = []
        return self.alive[name]

    @rule(partition=hs.sampled_from("pq"), n=hs.integers(1, 5))
    def append(self, partition: str, n: int) -> None:
        rows = list(range(self.n_rows, self.n_rows + n))
        self.table.append({"x": rows, "p": [partition] * n})
        self.unread.setdefault(partition, Counter()).update(rows)
        self.n_rows += n

    @rule(name=hs.sampled_from(MEMBERS), max_rows=hs.sampled_from([2, 1000]))
    def poll(self, name: str, max_rows: int) -> None:
        consumer = self.member(name)
        generation = consumer._generation
        rows = consumer.poll(max_rows=max_rows)
        if consumer._generation != generation:
            self.pending[name] = []  # what was polled before and not committed is given out again
        if rows is not None:
            self.pending[name] += zip(rows["_partition"].to_pylist(), rows["_bucket"].to_pylist(), rows["x"].to_pylist(), strict=True)

    @rule(name=hs.sampled_from(MEMBERS))
    def commit(self, name: str) -> None:
        if name not in self.alive:
            return
        consumer, rows = self.alive[name], self.pending[name]
        self.pending[name] = []
        try:
            consumer.commit()
        except ProgressConflict:
            return
        for partition, _, x in rows:
            if x in self.unread.get(partition, ()):  # else its partition was dropped since it was polled, or a rebalance read it again
                del self.unread[partition][x]

    @rule(name=hs.sampled_from(MEMBERS), is_kind=hs.booleans())
    def leave(self, name: str, is_kind: bool) -> None:
        consumer = self.alive.pop(name, None)
        self.pending.pop(name, None)
        if consumer is not None and is_kind:
            consumer.close()

    @rule(ms=hs.sampled_from([1, SESSION_MS // 2, SESSION_MS + 1]))
    def time_passes(self, ms: int) -> None:
        self.clock.now_ms += ms

    @rule(partition=hs.sampled_from("pq"))
    def drop_partition(self, partition: str) -> None:
        self.store.backend.drop_partition("a.t", partition, if_exists=True)
        self.unread.pop(partition, None)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = opened(Path(self.directory.name) / "s", self.clock)
        for consumer in self.alive.values():  # clients of a server outlive its restart
            consumer._backend = self.store.backend
            consumer._table = self.table

    @rule()
    @precondition(lambda self: self.n_rows > 0)
    def reset(self) -> None:
        self.store.execute("RESET CONSUMER g ON a.t TO EARLIEST")
        self.unread = {}
        for partition, x in self.everything():
            self.unread.setdefault(partition, Counter())[x] += 1

    def everything(self) -> list[tuple[str, int]]:
        rows = self.table.scan(metadata=True).read_all()
        return list(zip(rows["_partition"].to_pylist(), rows["x"].to_pylist(), strict=True))

    @invariant()
    def what_is_committed_is_exactly_what_the_model_says(self) -> None:
        recorded = self.store.progress("consumer:").get("consumer:g:a.t")
        offsets = recorded.offsets.get("a.t", {}) if recorded else {}
        left = self.table.scan(start=dict(offsets), metadata=True).read_all()
        found = Counter(zip(left["_partition"].to_pylist(), left["x"].to_pylist(), strict=True))
        expected = Counter({(partition, x): 1 for partition, rows in self.unread.items() for x in rows})
        assert found == expected

    @invariant()
    def live_members_of_one_generation_never_share_a_bucket(self) -> None:
        recorded = self.store.progress("consumer:").get("consumer:g:a.t")
        generation = recorded.detail.get("generation") if recorded else None
        present = [consumer for consumer in self.alive.values() if consumer._generation == generation]
        for partition in "pq":
            for bucket in range(2):
                owners = [consumer for consumer in present if consumer._is_mine(TableBucket(partition, bucket))]
                assert len(owners) <= 1

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.directory.cleanup()


TestGroups = Groups.TestCase
TestGroups.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_consumer_that_is_dead_is_forgotten_and_one_that_commits_or_has_a_live_member_is_not(tmp_path):
    clock = ManualClock()
    with opened(tmp_path / "s", clock, consumer_expiration_ms=24 * HOUR_MS) as store:
        store.execute("CREATE TABLE a.t (x BIGINT)")
        table = store.table("a.t")
        table.append({"x": [1, 2]})
        dead, commits = table.consumer("dead"), table.consumer("commits")
        member = table.consumer("lives", member="a", session_timeout_s=3600)
        for consumer in (dead, commits, member):
            consumer.poll()
            consumer.commit()

        for _ in range(25):
            clock.now_ms += HOUR_MS // 2
            store.backend.heartbeat("consumer:lives:a.t", "a", HOUR_MS)
            clock.now_ms += HOUR_MS // 2
            store.backend.heartbeat("consumer:lives:a.t", "a", HOUR_MS)
            commits.commit()
            store.backend.maintenance.run_once(clock())
        version = store.version()
        store.backend.maintenance.run_once(clock())

        assert sorted(store.progress("consumer:")) == ["consumer:commits:a.t", "consumer:lives:a.t"]
        assert store.version() == version


def test_an_idle_reader_that_polls_says_every_hour_that_it_lives_and_loses_nothing(tmp_path):
    clock = ManualClock()
    with opened(tmp_path / "s", clock, consumer_expiration_ms=3 * HOUR_MS) as store:
        store.execute("CREATE TABLE a.t (x BIGINT)")
        store.table("a.t").append({"x": [1, 2]})
        consumer = store.table("a.t").consumer("c")
        consumer.poll()
        consumer.commit()

        for _ in range(5):
            clock.now_ms += HOUR_MS
            consumer._heard_s -= KEEPALIVE_S  # an hour by the client's clock
            assert consumer.poll() is None
            store.backend.maintenance.run_once(clock())

        recorded = store.progress("consumer:")["consumer:c:a.t"]
        assert (recorded.detail["committed_ms"], recorded.offsets) == (clock(), {"a.t": {TableBucket("", 0): 2}})
        version = store.version()
        assert consumer.poll() is None
        assert store.version() == version


def test_a_member_that_nobody_hears_of_is_out_when_another_one_asks(tmp_path):
    clock = ManualClock()
    with opened(tmp_path / "s", clock) as store:
        store.execute("CREATE TABLE a.t (x BIGINT)")
        beat = store.backend.heartbeat
        first = beat("consumer:g:a.t", "a", SESSION_MS)
        both = beat("consumer:g:a.t", "b", SESSION_MS)
        version = store.version()
        clock.now_ms += SESSION_MS - 1
        same = beat("consumer:g:a.t", "b", SESSION_MS)
        assert store.version() == version
        clock.now_ms += 1
        alone = beat("consumer:g:a.t", "b", SESSION_MS)
        back = beat("consumer:g:a.t", "a", SESSION_MS)

        assert [m.members for m in (first, both, same, alone, back)] == [("a",), ("a", "b"), ("a", "b"), ("b",), ("a", "b")]
        assert first.generation < both.generation == same.generation < alone.generation < back.generation


def test_commits_of_two_members_in_any_order_keep_each_others_offsets(tmp_path):
    clock = ManualClock()
    with opened(tmp_path / "s", clock) as store:
        store.execute("CREATE TABLE a.t (x BIGINT) WITH ('bucket.num' = '2', 'bucket.key' = 'x')")
        generation = store.backend.heartbeat("consumer:g:a.t", "a", SESSION_MS).generation

        def commit(bucket: int, before: int, after: int, generation: int) -> None:
            at = TableBucket("", bucket)
            progress = Progress("consumer:g:a.t", {"a.t": {at: after}}, {"a.t": {at: before}}, merges=True, generation=generation)
            store.backend.commit(CommitRequest((), (progress,)))

        commit(0, 0, 5, generation)
        commit(1, 0, 7, generation)
        with pytest.raises(ProgressConflict):
            commit(1, 0, 9, generation)
        with pytest.raises(ProgressConflict):
            commit(1, 7, 9, generation - 1)

        recorded = store.progress("consumer:")["consumer:g:a.t"]
        assert recorded.offsets == {"a.t": {TableBucket("", 0): 5, TableBucket("", 1): 7}}
        assert recorded.detail["committed_ms"] == clock()


@given(hs.lists(hs.tuples(hs.integers(1, 4), hs.integers(0, 3)), max_size=12), hs.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_a_reset_to_a_time_finds_the_first_rows_committed_at_or_after_it(commits, seconds):
    clock = ManualClock()
    begun_ms = clock.now_ms
    with tempfile.TemporaryDirectory(prefix="groups") as folder, opened(Path(folder) / "s", clock) as store:
        store.execute("CREATE TABLE a.t (x BIGINT) WITH ('bucket.num' = '2', 'bucket.key' = 'x')")
        table = store.table("a.t")
        written: list[tuple[int, int]] = []
        for n_rows, pause in commits:
            clock.now_ms += pause * 1000
            rows = list(range(len(written), len(written) + n_rows))
            table.append({"x": rows})
            written += [(x, clock.now_ms) for x in rows]
        moment = datetime.fromtimestamp(begun_ms / 1000 + seconds, UTC)
        clock.now_ms = max(clock.now_ms, begun_ms + seconds * 1000)

        store.execute(f"RESET CONSUMER c ON a.t TO TIMESTAMP '{moment.isoformat()}'")
        rows = table.consumer("c").poll()

        assert sorted(rows["x"].to_pylist() if rows else []) == [x for x, at_ms in written if at_ms >= begun_ms + seconds * 1000]


def test_a_reset_to_a_time_goes_by_the_rows_commits_where_frames_were_joined_and_never_to_the_future(tmp_path):
    clock = ManualClock()
    begun_ms = clock.now_ms
    with opened(tmp_path / "s", clock) as store:
        store.execute("CREATE TABLE a.t (x BIGINT)")
        table = store.table("a.t")
        for x in range(50):
            table.append({"x": [x]})
            clock.now_ms += 1000
        clock.now_ms += HOUR_MS
        for _ in range(3):
            table.compact()
        frames = list(store.backend.fetch("a.t", {TableBucket("", 0): (0, 50)}, ["x"]))
        assert len(frames) < 50, "the small frames were joined"
        consumer = table.consumer("c")

        consumer.reset(datetime.fromtimestamp(begun_ms / 1000 + 30, UTC))

        assert consumer.position == {TableBucket("", 0): 30}
        with pytest.raises(OffsetOutOfRange, match="in the future"):
            consumer.reset(datetime.fromtimestamp(clock.now_ms / 1000 + 86_400, UTC))
        assert table.consumer("c").position == {TableBucket("", 0): 30}


def test_a_consumer_polls_a_few_rows_at_a_time_after_retention_has_passed_the_beginning_of_the_log(tmp_path):
    clock = ManualClock()
    with opened(tmp_path / "s", clock, log_file_bytes_max=64 * 1024) as store:
        store.execute("CREATE TABLE a.t (x BIGINT) WITH ('table.log.ttl' = '1h')")
        table = store.table("a.t")
        for x in range(5):
            table.append({"x": [x] * 10})
        clock.now_ms += 2 * HOUR_MS
        table.compact()
        for x in range(5, 10):
            table.append({"x": [x] * 10})
        assert table.offsets("earliest") == {TableBucket("", 0): 50}
        consumer = table.consumer("c")

        polled = []
        while (rows := consumer.poll(max_rows=20)) is not None:
            polled.append(rows["x"].to_pylist())

        assert polled == [[5] * 10 + [6] * 10, [7] * 10 + [8] * 10, [9] * 10]
