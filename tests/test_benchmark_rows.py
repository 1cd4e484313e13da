import json

import pytest

from benchmarks.rows import HERE, Row, Series, load, print_table, save, table


@pytest.mark.parametrize(
    ("ours", "peer", "target", "met"),
    [
        (3.0, 4.0, "<= 0.75 x", True),
        (3.1, 4.0, "<= 0.75 x", False),
        (1.0, 500.0, ">= 500 x faster", True),
        (1.0, 499.0, ">= 500 x faster", False),
        (60.0, None, "<= 60", True),
        (61.0, None, "<= 60", False),
        (4000.0, 100.0, ">= 4000", True),
        (3999.0, 100.0, ">= 4000", False),
        (1.0, 2.0, "", None),
    ],
)
def test_a_target_means_what_it_says(ours, peer, target, met):
    assert Row("q", ours, peer, "them", "us", target).met is met


@pytest.mark.parametrize(("peer", "target"), [(1.0, "fast"), (1.0, "< 3 x"), (None, "<= 0.75 x")])
def test_a_target_that_cannot_be_checked_is_refused(peer, target):
    with pytest.raises(ValueError, match="target"):
        Row("q", 1.0, peer, "them", "us", target)


def test_rows_come_back_as_they_were_saved_and_the_table_shows_what_is_missed(tmp_path, capsys):
    rows = [Row("look-up", 3.0, 4.0, "v2", "us", "<= 0.5 x", "bounded by Python"), Row("size", 1.0, None, "", "MiB")]
    series = [Series("look-up", "records", "us", [10, 100], {"ours": [1.0, 2.0], "v2": [3.0, None]})]
    save(rows, tmp_path / "rows.json", series)
    assert load(tmp_path / "rows.json") == (rows, series)
    assert rows[0].ratio == 0.75
    assert "| 3.00 us | 4.00 us (v2) | 0.750 | <= 0.5 x | missed |" in " ".join(table(rows).split())
    print_table(rows)
    assert "bounded by Python" in (printed := capsys.readouterr().out)
    assert "0 of 1 targets met" in printed


def test_the_command_is_kept_as_it_is_given_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", [f"{HERE}benchmarks/one.py", "--out", f"{HERE}benchmarks/results/one.json"])
    save([], tmp_path / "rows.json")
    assert json.loads((tmp_path / "rows.json").read_text())["command"] == ["benchmarks/one.py", "--out", "benchmarks/results/one.json"]
