"""Net changes of a changelog equal what replaying it row by row gives."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from storage_engine.lake.netting import net_changes


def as_changelog(rows: list[tuple[str, int, int]]) -> pa.Table:
    kinds, keys, values = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table({"_change_type": pa.array(kinds, pa.string()), "k": pa.array(keys, pa.int64()), "v": pa.array(values, pa.int64())})


def replay(before: dict[int, int], writes: list[tuple[int, int | None]]) -> tuple[list[tuple[str, int, int]], dict[int, int]]:
    """A complete changelog of writes (key, value or None for a delete), and the rows after it."""
    now, log = dict(before), []
    for key, value in writes:
        if value is None:
            if key in now:
                log.append(("-D", key, now.pop(key)))
        elif key not in now:
            log.append(("+I", key, value))
            now[key] = value
        elif now[key] != value:
            log.extend([("-U", key, now[key]), ("+U", key, value)])
            now[key] = value
    return log, now


@settings(max_examples=200, deadline=None)
@given(
    before=st.dictionaries(st.integers(0, 5), st.integers(0, 9)),
    writes=st.lists(st.tuples(st.integers(0, 8), st.one_of(st.none(), st.integers(0, 9))), max_size=40),
)
def test_applying_net_changes_gives_the_rows_that_replaying_the_changelog_gives(before, writes):
    log, after = replay(before, writes)

    net = net_changes(as_changelog(log), ["k"])

    inserts, updates, deletes = ({row["k"]: row["v"] for row in part.to_pylist()} for part in (net.inserts, net.updates, net.deletes))
    assert not inserts.keys() & before.keys()
    assert updates.keys() <= before.keys()
    assert deletes.keys() <= before.keys()
    applied = {k: v for k, v in {**before, **inserts, **updates}.items() if k not in deletes}
    assert applied == after


def test_a_key_inserted_and_deleted_in_one_stretch_is_no_change():
    net = net_changes(as_changelog([("+I", 1, 10), ("-D", 1, 10)]), ["k"])

    assert net.n_rows == 0
