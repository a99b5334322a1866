"""fsck, compact, backup and restore on the command line."""

import json
from pathlib import Path

import pytest

import storage_engine
from flashlake.cli import main


@pytest.fixture
def store_dir(tmp_path: Path) -> Path:
    with storage_engine.connect(f"file://{tmp_path}/s") as store:
        store.execute("CREATE TABLE c.t (id BIGINT, n BIGINT, PRIMARY KEY (id) NOT ENFORCED)")
        store.table("c.t").upsert({"id": [1, 2], "n": [10, 20]})
    return tmp_path / "s"


@pytest.mark.parametrize("command", ["fsck", "compact", "backup", "restore"])
def test_each_command_explains_itself_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])

    assert ended.value.code == 0
    assert f"\n  flashlake {command}" in capsys.readouterr().out


def test_fsck_says_what_it_saw_and_names_damage_with_status_1(store_dir, capsys):
    assert main(["fsck", str(store_dir), "--keys"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "2 commits (version 2), 1 tables, 1 buckets, 2 keys" in shown.err

    (path,) = (store_dir / "log").iterdir()
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    assert main(["fsck", str(store_dir), "--format", "json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["severity"], found["file"], found["offset"]) == ("damage", str(path), 64)


def test_fsck_refuses_a_directory_in_use_and_one_without_a_store(store_dir, tmp_path, capsys):
    with storage_engine.connect(store_dir.as_uri()):
        assert main(["fsck", str(store_dir)]) == 1
    assert "in use by process" in capsys.readouterr().err
    assert main(["fsck", str(tmp_path / "nothing")]) == 1
    assert "there is no store here" in capsys.readouterr().err


def test_a_backup_comes_back_and_overwrites_nothing(store_dir, tmp_path, capsys):
    backup, restored = str(tmp_path / "b"), str(tmp_path / "r")
    assert main(["backup", backup, "--store", store_dir.as_uri()]) == 0
    assert main(["restore", backup, restored, "--format", "json"]) == 0
    assert main(["restore", backup, restored]) == 1
    assert main(["backup", backup, "--store", store_dir.as_uri()]) == 1
    assert capsys.readouterr().err.count("is not empty") == 2
    with storage_engine.connect(f"file://{restored}") as store:
        assert store.table("c.t").read().to_pylist() == [{"id": 1, "n": 10}, {"id": 2, "n": 20}]


def test_compact_says_for_each_table_what_it_gave_back(store_dir, capsys):
    with storage_engine.connect(store_dir.as_uri()) as store:
        store.execute("CREATE TABLE c.log (id BIGINT) WITH ('table.log.ttl' = '1ms')")
        store.table("c.log").append({"id": list(range(10_000))})
        n_bytes = sum(path.stat().st_size for path in (store_dir / "log").iterdir())

    assert main(["compact", "--store", store_dir.as_uri(), "--format", "json"]) == 0

    shown = capsys.readouterr()
    log, other = json.loads(shown.out)
    assert (log["table"], log["rows_expired"], other["table"], other["rows_expired"]) == ("c.log", 10_000, "c.t", 0)
    assert f"{log['bytes_given_back'] + other['bytes_given_back']:,} bytes given back" in shown.err
    assert sum(path.stat().st_size for path in (store_dir / "log").iterdir()) < n_bytes / 2
    with storage_engine.connect(store_dir.as_uri()) as store:
        assert store.table("c.t").read().to_pylist() == [{"id": 1, "n": 10}, {"id": 2, "n": 20}]


def test_compact_refuses_a_table_that_there_is_not(store_dir, capsys):
    assert main(["compact", "c.none", "--store", store_dir.as_uri()]) == 1
    assert "c.none" in capsys.readouterr().err
