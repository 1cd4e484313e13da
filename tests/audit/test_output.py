"""``fi-cachestore audit``: exit codes, text, JSON and SARIF."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fi_cachestore.audit.audit import audit
from fi_cachestore.audit.findings import RULES, Finding, Report, Severity
from fi_cachestore.audit.review import Review, reviewed
from fi_cachestore.audit.sarif import to_sarif
from fi_cachestore.audit.tree import open_path
from fi_cachestore.cli.main import cli
from tests.audit.packages import write
from tests.audit.test_rules import CONFIG, HEAD, runner

ERROR = runner("self.n = n", "return (inputs[0].dtype,)", "return list(range(self.n))", "module.launch(tactic)")
WARNING = runner("self.flag = flag", "return (inputs[0].dtype,)", "return [1, 2]", "module.launch(tactic, self.flag)")
CLEAN = runner("", "return (inputs[0].dtype,)", "return [1, 2]", "module.launch(tactic)")


def run(root, text, *options):
    made = write(root, {"a.py": HEAD + CONFIG + text, "bad.py": "class A(TunableRunner:"})
    return CliRunner().invoke(cli, ["audit", "--module", str(made), *options], standalone_mode=False)


@pytest.mark.parametrize(
    ("text", "options", "code"),
    [
        (ERROR, (), 1),
        (ERROR, ("--fail-on", "never"), 0),
        (WARNING, (), 0),
        (WARNING, ("--fail-on", "warning"), 1),
        (CLEAN, ("--fail-on", "warning"), 0),
        (CLEAN, ("--fail-on", "note"), 0),
        (ERROR, ("--format", "sarif"), 1),
        (ERROR, ("--json",), 1),
    ],
)
def test_exit_codes(tmp_path, text, options, code):
    assert run(tmp_path, text, *options).return_value == code


def test_text_names_place_severity_rule_and_class(tmp_path):
    done = run(tmp_path, ERROR)
    (line,) = done.stdout.splitlines()
    assert line.startswith("made/a.py:")
    assert ": error: list-parameter: Runner: get_valid_tactics reads the constructor's n (int)" in line
    assert "not read: made/bad.py: SyntaxError" in done.stderr
    assert "1 runner classes; 1 errors, 0 warnings, 0 notes" in done.stderr


def test_notes_and_classes_are_shown_on_request(tmp_path):
    done = run(tmp_path, ERROR + "def other(): return AutoTuner.get().choose_one('made_gemm', [make()], CONFIG, [])\n", "--all")
    assert "note: op-name" in done.stdout
    assert "made.a:Runner" in done.stdout


def test_json_has_its_schema_and_everything_found(tmp_path):
    found = json.loads(run(tmp_path, ERROR, "--json").stdout)
    assert found["schema"] == "fi_cachestore.audit/1"
    assert found["class_count"] == 1
    assert found["finding_count"] == {"error": 1, "warning": 0, "note": 0}
    (finding,) = found["findings"]
    assert set(finding) == {"rule", "severity", "parameter", "message", "path", "line", "types", "op", "reviewed"}
    (described,) = found["classes"]
    assert described["missed"] == ["n"]
    assert found["unread"] == [["made/bad.py", found["unread"][0][1]]]


def test_one_class_alone(tmp_path):
    done = run(tmp_path, ERROR, "--class", "Nothing", "--json")
    assert (done.return_value, json.loads(done.stdout)["classes"]) == (0, [])


def test_what_is_not_there_ends_with_its_code(tmp_path):
    command = [sys.executable, "-m", "fi_cachestore.cli.main", "audit", "--json", "--module"]
    done = subprocess.run([*command, "no_such_package"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)["error"]) == (11, "NoSuchSourceError")


def test_the_command_needs_no_torch(tmp_path):
    made = write(tmp_path, {"a.py": HEAD + CONFIG + CLEAN})
    code = "import sys\nfrom fi_cachestore.cli.main import cli\ncli(['audit', '--module', sys.argv[1]], standalone_mode=False)\n"
    code += "print({'torch', 'flashinfer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, str(made)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_documented_rules_are_the_rules():
    text = (Path(__file__).parents[2] / "docs" / "audit.md").read_text("utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| (error|warning|note) \| (.+) \| (.+) \|$", text, re.MULTILINE)
    assert rows == [(rule.name, rule.severity.value, rule.title, rule.effect) for rule in RULES.values()]


# -- SARIF ------------------------------------------------------------------------------------------------------------------------


def check_sarif(document):
    """Check what SARIF 2.1.0 requires of the parts that are used here."""
    assert document["version"] == "2.1.0"
    assert document["$schema"].endswith("sarif-2.1.0.json")
    (one,) = document["runs"]
    driver = one["tool"]["driver"]
    assert isinstance(driver["name"], str)
    assert driver["name"]
    names = [rule["id"] for rule in driver["rules"]]
    assert len(set(names)) == len(names)
    for rule in driver["rules"]:
        assert rule["defaultConfiguration"]["level"] in ("none", "note", "warning", "error")
        assert all(rule[text]["text"] for text in ("shortDescription", "fullDescription"))
    for result in one["results"]:
        assert result["message"]["text"]
        assert result["level"] in ("none", "note", "warning", "error")
        assert names[result["ruleIndex"]] == result["ruleId"]
        for place in result["locations"]:
            physical = place["physicalLocation"]
            assert not physical["artifactLocation"]["uri"].startswith("/")
            assert " " not in physical["artifactLocation"]["uri"]
            assert physical["region"]["startLine"] >= 1
        assert all(isinstance(mark, str) for mark in result["partialFingerprints"].values())
        assert all(item["kind"] in ("inSource", "external") for item in result.get("suppressions", ()))
    for invocation in one["invocations"]:
        assert isinstance(invocation["executionSuccessful"], bool)
        assert all(item["message"]["text"] for item in invocation["toolExecutionNotifications"])
    return one


def test_sarif(tmp_path):
    one = check_sarif(json.loads(run(tmp_path, ERROR, "--format", "sarif").stdout))
    assert [(result["ruleId"], result["level"]) for result in one["results"]] == [("list-parameter", "error")]
    assert "made/bad.py was not read" in one["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"]
    assert [rule["id"] for rule in one["tool"]["driver"]["rules"]] == list(RULES)


def test_fingerprints_stay_when_code_moves(tmp_path):
    def marks(root, text):
        document = to_sarif(audit(open_path(write(root, {"a.py": HEAD + CONFIG + text}))), "1")
        return [result["partialFingerprints"] for result in document["runs"][0]["results"]]

    assert marks(tmp_path / "one", ERROR) == marks(tmp_path / "two", "\n\n# moved\n" + ERROR)


# -- reviews ----------------------------------------------------------------------------------------------------------------------

FOUND = Finding("list-parameter", Severity.ERROR, "n", "text", "a.py", 1, ("m:f.<locals>.A", "m:B"))


@pytest.mark.parametrize(
    ("row", "speaks"),
    [
        (Review("list-parameter", ("A", "B"), (), "why", None), True),
        (Review("list-parameter", ("*",), ("n",), "why", None), True),
        (Review("list-parameter", ("A",), (), "why", None), False),
        (Review("list-parameter", ("A", "B"), ("other",), "why", None), False),
        (Review("list-input", ("A", "B"), (), "why", None), False),
    ],
)
def test_a_review_counts_for_all_that_a_finding_names(row, speaks):
    (marked,) = reviewed(Report("t", (), (FOUND,)), [row]).findings
    assert bool(marked.reviewed) is speaks
    assert reviewed(Report("t", (), (FOUND,)), [row]).at_or_above(Severity.NOTE) == (0 if speaks else 1)


def test_a_review_may_leave_less():
    (marked,) = reviewed(Report("t", (), (FOUND,)), [Review("list-parameter", ("*",), (), "because", Severity.NOTE)]).findings
    assert (marked.severity, marked.reviewed) == (Severity.NOTE, "")
    assert marked.message.endswith("Reviewed: because")


def test_reviewed_findings_are_suppressed_in_sarif():
    marked = reviewed(Report("t", (), (FOUND,)), [Review("list-parameter", ("*",), (), "because", None)])
    (result,) = check_sarif(to_sarif(marked, "1"))["results"]
    assert result["suppressions"] == [{"kind": "external", "justification": "because"}]
