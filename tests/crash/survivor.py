"""Judges a store after a crash: every acknowledged commit is there, whole and once; of those not acknowledged, the next one or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from storage_engine import Store
from tests.crash.workload import N_KEYS, N_WRITERS, Row, applied_to, commit_of, last_sequence


def judge(store: Store, seed: int, acknowledged: Mapping[int, int]) -> int:
    """Compare the store with the model of the commits it claims to hold. `acknowledged`: writer -> last sequence. Returns commits held."""
    held = {writer: last_sequence(store, writer) for writer in range(N_WRITERS)}
    for writer, seq in held.items():
        n_acked = acknowledged.get(writer, 0)
        assert n_acked <= seq <= n_acked + 1, f"writer {writer}: acknowledged {n_acked}, the store holds {seq}"
    _judge_log(store, seed, held)
    _judge_totals(store, seed, held)
    _judge_rows(store, seed, held)
    return sum(held.values())


def _judge_log(store: Store, seed: int, held: Mapping[int, int]) -> None:
    rows = store.table("crash.log").scan().read_all()
    found = Counter(zip(*(rows[name].to_pylist() for name in ("writer", "seq", "i", "day")), strict=True))
    commits = [commit_of(seed, writer, seq) for writer, last in held.items() for seq in range(1, last + 1)]
    expected = Counter((commit.writer, commit.seq, i, day) for commit in commits for i, day in commit.appended)
    assert found == expected, f"log: {(found - expected).total()} rows too many, {(expected - found).total()} missing"
    assert store.table("crash.log").count() == expected.total()


def _judge_totals(store: Store, seed: int, held: Mapping[int, int]) -> None:
    found = {row["writer"]: (row["n"], row["high"]) for row in store.table("crash.total").read().to_pylist()}
    totals = {writer: sum(len(commit_of(seed, writer, seq).appended) for seq in range(1, last + 1)) for writer, last in held.items()}
    assert found == {writer: (totals[writer], last) for writer, last in held.items() if last}


def _judge_rows(store: Store, seed: int, held: Mapping[int, int]) -> None:
    expected: dict[tuple[int, int], Row] = {}
    for writer, last in held.items():
        for seq in range(1, last + 1):
            applied_to(expected, commit_of(seed, writer, seq))
    table = store.table("crash.pk")
    assert {(row["writer"], row["k"]): (row["seq"], row["note"]) for row in table.read().to_pylist()} == expected
    assert table.count() == len(expected)
    keys = [{"writer": writer, "k": k} for writer in range(N_WRITERS) for k in range(N_KEYS)]
    looked_up = table.lookup(keys, columns=["seq", "note"], missing="null").to_pylist()
    for key, row in zip(keys, looked_up, strict=True):
        assert (row["seq"], row["note"]) == expected.get((key["writer"], key["k"]), (None, None)), key
    by_prefix = table.prefix_lookup({"writer": list(range(N_WRITERS))})
    assert sorted(zip(by_prefix["writer"].to_pylist(), by_prefix["k"].to_pylist(), strict=True)) == sorted(expected)
    assert _replayed(table.scan().read_all().to_pylist()) == expected


def _replayed(changes: list[dict]) -> dict[tuple[int, int], Row]:
    """The changelog's own account of the current rows; it must contradict itself nowhere."""
    rows: dict[tuple[int, int], Row] = {}
    for change in changes:
        key, row = (change["writer"], change["k"]), (change["seq"], change["note"])
        if change["_change_type"] in ("-U", "-D"):
            assert rows.pop(key, None) == row, f"{change} removes a row that was not there"
        else:
            assert key not in rows, f"{change} adds a row that is there"
            rows[key] = row
    return rows
