"""bench/compare.py: what it makes of the times of two commits; the builds are tried by hand."""

import shutil
import subprocess
import sys
from pathlib import Path

import compare
import pytest
from compare import Comparison


def test_only_what_all_rounds_have_is_compared_the_slowest_first():
    base = [{"a": 1.0, "b": 2.0, "gone": 1.0}, {"a": 1.1, "b": 1.9}]
    new = [{"a": 0.9, "b": 4.0, "added": 1.0}, {"a": 1.2, "b": 3.8}]
    found = compare.comparisons(base, new)
    assert [c.name for c in found] == ["b", "a"]
    assert found[0] == Comparison("b", (2.0, 1.9), (4.0, 3.8))
    assert found[0].ratio == 2.0
    assert found[1].ratio == 0.9
    assert found[1].times_slower == 1


@pytest.mark.parametrize(
    ("new", "slower"),
    [
        ((1.2, 1.3, 1.2), True),
        ((1.2, 1.3, 0.95), False),  # the least time is not above the threshold
        ((1.2, 1.1, 1.1), False),  # faster in the round in which the machine was busy
        ((1.04, 1.04, 1.6), False),  # always slower, by less than the threshold
        ((0.5, 0.5, 0.5), False),
    ],
)
def test_slower_is_beyond_the_threshold_in_the_least_times_and_in_each_round(new, slower):
    base = (1.0, 1.05, 1.15)
    assert Comparison("x", base, new).is_slower(1.05) is slower


def test_geometric_mean():
    assert compare.geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert compare.geometric_mean([1.0, 8.0, 1.0]) == pytest.approx(2.0)


def test_report():
    found = [
        Comparison("bench/t.py::test[b]", (2e-6, 2.1e-6), (4e-6, 4e-6)),
        Comparison("bench/t.py::test[a]", (2e-3, 2e-3), (1e-3, 3e-3)),
    ]
    *table, _, mean = compare.report(found, 1.05).splitlines()
    assert table[0] == "| benchmark | base, µs | new, µs | new / base | rounds slower |  |"
    assert table[2:] == [
        "| test[b] | 2 | 4 | 2.000 | 2 of 2 | slower |",
        "| test[a] | 2000 | 1000 | 0.500 | 1 of 2 |  |",
    ]
    assert mean == "geometric mean of 2 ratios: 1.000"


def test_the_commits_take_turns_and_so_does_who_is_first(monkeypatch):
    calls = []

    def measure(folder, arguments):
        assert arguments == ["-k", "x"]
        calls.append(folder.name)
        return {"x": len(calls)}

    monkeypatch.setattr(compare, "measure", measure)
    base, new = compare.take_turns([Path("A"), Path("B")], 3, ["-k", "x"])
    assert "".join(calls) == "ABBAAB"
    assert base == [{"x": 1}, {"x": 4}, {"x": 5}]
    assert new == [{"x": 2}, {"x": 3}, {"x": 6}]


@pytest.fixture
def measured(monkeypatch):
    """`main` without the builds; the times of the rounds are given, base and new in turn."""

    def give(*rounds):
        rounds = iter(rounds)
        monkeypatch.setattr(compare, "hash_of", lambda commit: commit)
        monkeypatch.setattr(compare, "build", lambda commit, cache: Path(commit))
        monkeypatch.setattr(compare, "measure", lambda folder, arguments: next(rounds))
        return compare.main(["A", "B", "--rounds=1"])

    return give


def test_what_seems_slower_is_measured_again(measured, capsys):
    # One round, base first; then two, in the order base, new, new, base.
    assert measured({"x": 1, "y": 1}, {"x": 2, "y": 1}, {"x": 2}, {"x": 2}, {"x": 2}, {"x": 2}) == 0
    assert "| x | 2000000 | 2000000 | 1.000 | 0 of 2 |  |" in capsys.readouterr().out


def test_what_is_slower_again_fails(measured, capsys):
    assert measured({"x": 1}, {"x": 2}, {"x": 1}, {"x": 2}, {"x": 2}, {"x": 1}) == 1
    assert "2 of 2 | slower |" in capsys.readouterr().out


def test_nothing_in_common(measured):
    with pytest.raises(SystemExit, match="no benchmark that both have"):
        measured({"x": 1}, {"y": 1})


def test_a_commit_beside_itself(monkeypatch):
    monkeypatch.setattr(compare, "hash_of", lambda commit: commit)
    with pytest.raises(SystemExit, match="A and A are one commit"):
        compare.main(["A", "A"])


def test_a_command_that_fails_shows_what_it_printed(capfd):
    with pytest.raises(SystemExit, match="failed: "):
        compare.run(sys.executable, "-c", "import sys; print('why'); sys.exit(3)")
    assert "why" in capfd.readouterr().err


@pytest.mark.skipif(not shutil.which("git"), reason="no git")
def test_the_working_tree_is_a_commit(tmp_path, monkeypatch):
    def git(*arguments):
        done = subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True)
        return done.stdout.decode()

    git("init", "--quiet")
    git("config", "user.name", "a")
    git("config", "user.email", "a@b.c")
    file = tmp_path / "file"
    file.write_text("one\n")
    git("add", "file")
    git("commit", "--quiet", "--message", "one")
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    clean = compare.hash_of(compare.WORKING_TREE)
    assert clean == compare.hash_of("HEAD")
    file.write_text("two\n")
    changed = compare.hash_of(compare.WORKING_TREE)
    assert changed != clean
    assert git("show", f"{changed}:file") == "two\n"
    assert file.read_text() == "two\n"
