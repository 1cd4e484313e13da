"""Which classes are runner classes, by their source alone."""

import os
import subprocess
import sys

import pytest

from fi_cachestore.audit import tree
from fi_cachestore.audit.classes import Finder, runner_classes
from fi_cachestore.audit.tree import open_package, open_path
from fi_cachestore.errors import NoSuchSourceError
from tests.audit.packages import found, write

ROOT = "from flashinfer.autotuner import TunableRunner\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ROOT + "class A(TunableRunner): pass\nclass B(A): pass\nclass C: pass", {"a:A", "a:B"}),
        ("import flashinfer.autotuner\nclass A(flashinfer.autotuner.TunableRunner): pass", {"a:A"}),
        ("import flashinfer.autotuner as at\nclass A(at.TunableRunner): pass", {"a:A"}),
        ("from flashinfer import autotuner\nclass A(autotuner.TunableRunner): pass", {"a:A"}),
        ("from flashinfer.autotuner import TunableRunner as Base\nclass A(Base): pass", {"a:A"}),
        ("from flashinfer.autotuner import *\nclass A(TunableRunner): pass", {"a:A"}),
        (ROOT + "Base = TunableRunner\nclass A(Base): pass", {"a:A"}),
        (ROOT + "class M: pass\nclass A(M, TunableRunner): pass", {"a:A"}),
        (ROOT + "class A(Generic[T], TunableRunner): pass\nclass B(A[int]): pass", {"a:A", "a:B"}),
        (ROOT + "def make():\n    class A(TunableRunner): pass\n    return A", {"a:make.<locals>.A"}),
        ("def make():\n    from flashinfer.autotuner import TunableRunner\n    class A(TunableRunner): pass", {"a:make.<locals>.A"}),
        (ROOT + "class O:\n    class A(TunableRunner): pass\n    class B(A): pass", {"a:O.A", "a:O.B"}),
        (ROOT + "try:\n    class A(TunableRunner): pass\nexcept Exception:\n    A = None", {"a:A"}),
        (ROOT + "match x:\n    case 1:\n        class A(TunableRunner): pass", {"a:A"}),
        (ROOT + "def f(TunableRunner):\n    class A(TunableRunner): pass", set()),
        (ROOT + "class TunableRunner: pass\nclass A: pass", set()),
        ("class TunableRunner: pass\nclass A(TunableRunner): pass", {"a:A"}),
        ("from flashinfer.autotuner import TunableRunner as T\nclass TunableRunner(T): pass\nclass A(TunableRunner): pass", {"a:A"}),
        ("class A(B): pass\nclass B(A): pass", set()),
        (ROOT + "class A(TunableRunner, B): pass\nclass B(A): pass", {"a:A", "a:B"}),
        ("# TunableRunner\nx = 'class A(TunableRunner): pass'", set()),
    ],
)
def test_bases_are_resolved_by_name_and_import(tmp_path, text, expected):
    assert set(found(tmp_path, {"a.py": text})) == expected


def test_bases_are_followed_through_modules_names_and_packages(tmp_path):
    classes = found(
        tmp_path,
        {
            "base.py": ROOT + "class Base(TunableRunner):\n    def forward(self): ...\n    def helper(self): ...",
            "sub/__init__.py": "from ..base import Base as Renamed",
            "sub/deep/__init__.py": "",
            "sub/deep/leaf.py": "from ... import sub\nclass Mixin:\n    def forward(self): ...\nclass Leaf(Mixin, sub.Renamed): pass",
            "other.py": "class Base: pass\nclass Leaf(Base): pass",
        },
    )
    assert set(classes) == {"base:Base", "sub.deep.leaf:Leaf"}
    leaf = classes["sub.deep.leaf:Leaf"]
    assert [scope.qualname for scope in leaf.lineage] == ["Leaf", "Mixin", "Base"]
    assert leaf.method("forward").qualname == "Mixin.forward"
    assert leaf.method("helper").qualname == "Base.helper"
    assert leaf.method("none") is None
    assert (leaf.direct, leaf.path, leaf.line) == (False, "made/sub/deep/leaf.py", 4)
    assert classes["base:Base"].direct


def test_a_diamond_is_looked_up_as_python_does(tmp_path):
    text = ROOT + "class A(TunableRunner): pass\nclass B(A): pass\nclass C(A): pass\nclass D(B, C): pass"
    lineage = found(tmp_path, {"a.py": text})["a:D"].lineage
    assert [scope.name for scope in lineage] == ["D", "B", "C", "A"]


def test_flashinfer_has_119_of_which_64_are_direct():
    classes = runner_classes()
    assert len(classes) == 119
    assert sum(item.direct for item in classes.values()) == 64
    assert sum("<locals>" in name for name in classes) == 38


def test_nothing_is_imported():
    code = "from fi_cachestore.audit.classes import runner_classes as f\nf()\nimport sys\nprint({'torch', 'flashinfer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_module_is_never_run(tmp_path):
    text = ROOT + "open(__file__ + '.ran', 'w')\nclass A(TunableRunner): pass"
    assert set(found(tmp_path, {"a.py": text})) == {"a:A"}
    assert not list((tmp_path / "made").glob("*.ran"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"class A(TunableRunner:\n", "SyntaxError"),
        (b"TunableRunner\0", "ValueError|SyntaxError"),
        (b"TunableRunner = '\xff'", "SyntaxError"),
        (b"TunableRunner = " + b"(" * 5000 + b")" * 5000, "SyntaxError|MemoryError|RecursionError"),
        (b"TunableRunner = " + b"-" * 50000 + b"1", "SyntaxError|MemoryError|RecursionError"),
    ],
    ids=["syntax", "null", "encoding", "nested", "deep"],
)
def test_a_file_that_does_not_parse_is_named_and_the_others_are_read(tmp_path, content, reason):
    made = write(tmp_path, {"a.py": ROOT + "class A(TunableRunner): pass"})
    (made / "bad.py").write_bytes(content)
    source = open_path(made)
    assert [item.name for item in Finder(source).classes] == ["A"]
    (unread,) = source.unread
    assert unread.path == "made/bad.py"
    assert unread.reason.partition(":")[0] in reason.split("|")


def test_odd_files_are_left_out(tmp_path, monkeypatch):
    made = write(tmp_path, {"a.py": ROOT + "class A(TunableRunner): pass", "large.py": "#" * 2000})
    os.mkfifo(made / "pipe.py")
    (made / "loop").symlink_to(made, target_is_directory=True)
    (made / "gone.py").symlink_to(made / "nowhere")
    monkeypatch.setattr(tree, "MAX_FILE_BYTES", 1000)
    source = open_path(made)
    assert [item.name for item in Finder(source).classes] == ["A"]
    assert {item.path: item.reason.split(",")[0] for item in source.unread} == {
        "made/large.py": "2000 bytes",
        "made/pipe.py": "not a regular file",
        "made/gone.py": "FileNotFoundError: No such file or directory",
    }


def test_long_chains_and_warnings_are_no_problem(tmp_path):
    chain = "if x == 0: pass\n" + "".join(f"elif x == {n}: pass\n" for n in range(1, 900))
    text = ROOT + chain + "pattern = '\\\\d'.replace('\\d', '')\nclass A(TunableRunner): pass"
    assert set(found(tmp_path, {"a.py": text})) == {"a:A"}


def test_one_file_and_a_directory_that_is_no_package(tmp_path):
    (tmp_path / "one.py").write_text(ROOT + "class A(TunableRunner): pass")
    (one,) = Finder(open_path(tmp_path / "one.py")).classes
    assert (one.type, one.path) == ("one:A", "one.py")
    (one,) = Finder(open_path(tmp_path)).classes
    assert (one.type, one.path) == ("one:A", "one.py")


@pytest.mark.parametrize("name", ["no_such_package_here", "flashinfer.no_such", "math", ""])
def test_what_is_not_there_is_said(name):
    with pytest.raises(NoSuchSourceError, match="no source to audit"):
        open_package(name)


def test_a_part_of_a_package_keeps_its_names():
    (one,) = Finder(open_package("flashinfer.prims_ts.gemm")).classes
    assert (one.type, one.path) == ("flashinfer.prims_ts.gemm.runner:PrimsTsGemmRunner", "flashinfer/prims_ts/gemm/runner.py")


def test_a_path_that_is_not_there_is_said(tmp_path):
    with pytest.raises(NoSuchSourceError, match="does not exist"):
        open_path(tmp_path / "nothing")
