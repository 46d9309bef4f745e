"""`aegis policy test` judges the cases beside the policies, and every example says with its cases what it does."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from .conftest import Aegis

EXAMPLES = Path(__file__).parents[2] / "examples" / "policies"
NEEDS = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
HOUSE = """\
backends: {files: {}}
agents: {bot: {backends: {files: {allowed: true, tool_denylist: [rm]}}}}
policy:
  text: |
    @id("all") permit(principal, action, resource);
    @id("no-prod") forbid(principal, action, resource) when { context.arguments has env && context.arguments.env == "prod" };
"""
CASES = """\
agent: bot
cases:
  - {name: reading, call: files.get, expect: allow, by: all}
  - {name: removing, call: files.rm, expect: hidden, by: tool_denylist}
"""
PROD = "  - {name: production, call: files.get, arguments: {env: prod}, expect: deny, by: no-prod}\n"


@pytest.fixture
def place(home: str) -> Path:
    path = Path(home)
    (path / "aegis.yaml").write_text(HOUSE)
    (path / "aegis.yaml").chmod(0o600)
    (path / "a.test.yaml").write_text(CASES)
    return path


def test_without_arguments_the_cases_beside_the_usual_configuration_are_judged(aegis: Aegis, place: Path) -> None:
    done = aegis("policy", "test")
    assert done.exit_code == 0
    assert "2 of 2 calls are as expected; 2 of 3 rules are covered" in done.stderr
    assert re.search(r"^  no-prod \(policy\.text:2\): has never forbidden one$", done.stdout, re.MULTILINE)


def test_a_rule_that_no_case_shows_fails_where_that_is_asked_for(aegis: Aegis, place: Path) -> None:
    assert aegis("policy", "test", "--fail-uncovered").exit_code == 1
    (place / "a.test.yaml").write_text(CASES + PROD)
    done = aegis("policy", "test", "--fail-uncovered")
    assert done.exit_code == 0
    assert "3 of 3 rules are covered" in done.stderr


def test_a_case_that_goes_otherwise_is_told_with_each_stages_opinion(aegis: Aegis, place: Path) -> None:
    (place / "a.test.yaml").write_text(CASES + PROD.replace("deny", "allow"))
    done = aegis("policy", "test", str(place))
    assert done.exit_code == 1
    assert "2 of 3 calls are as expected" in done.stderr
    at = done.stdout.index("WRONG")
    assert (
        "a.test.yaml:5: production (bot: files.get): expected allow, but it is refused, by `policy`" in done.stdout[at:]
    )
    assert re.search(r"policy +deny +forbidden by `no-prod`", done.stdout[at:])
    assert re.search(r"acl +pass", done.stdout[at:])


def test_json_is_one_array_of_flat_rows(aegis: Aegis, place: Path) -> None:
    done = aegis("policy", "test", "--json")
    rows = json.loads(done.stdout)
    assert all(type(value) in (str, int, bool) for row in rows for value in row.values())
    cases = [row for row in rows if row["kind"] == "case"]
    assert [(row["name"], row["line"], row["ok"], row["got"]) for row in cases] == [
        ("reading", 3, True, "allow"),
        ("removing", 4, True, "hidden"),
    ]
    rules = {row["rule"]: row["covered"] for row in rows if row["kind"] == "rule"}
    assert rules == {"all": True, "no-prod": False, "agents.bot.backends.files.tool_denylist.rm": True}


def test_faults_are_told_with_their_line_and_nothing_is_judged(aegis: Aegis, place: Path) -> None:
    (place / "a.test.yaml").write_text(CASES.replace("files.get", "fils.get").replace("hidden", "hiden"))
    done = aegis("policy", "test")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "a.test.yaml:4" in done.stderr
    assert "^" in done.stderr
    assert "no case was judged" in done.stderr
    rows = json.loads(aegis("policy", "test", "--json").stdout)
    assert [row["severity"] for row in rows] == ["fault"]


@pytest.mark.parametrize("words", [[], ["."], ["{}/empty"], ["{}/no.test.yaml"]])
def test_no_cases_are_no_good_result(
    aegis: Aegis, place: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "a.test.yaml").unlink()
    (place / "empty").mkdir()
    monkeypatch.chdir(place)
    done = aegis("policy", "test", *(word.format(place) for word in words))
    assert done.exit_code in (1, 2)
    assert "no" in done.stderr


def test_a_broken_configuration_is_told_and_nothing_is_judged(aegis: Aegis, place: Path) -> None:
    (place / "aegis.yaml").write_text(HOUSE + "agnts: {}\n")
    for words in ([], [str(place)]):
        done = aegis("policy", "test", *words)
        assert (done.exit_code, "unknown key `agnts`" in done.stderr) == (1, True)


def test_what_a_case_is_called_cannot_steer_the_terminal(aegis: Aegis, place: Path) -> None:
    (place / "a.test.yaml").write_text(CASES.replace("reading", '"\\e[2Jreading"'))
    done = aegis("policy", "test")
    assert "\x1b" not in done.output
    assert "reading" in done.stdout


# --- the examples -----------------------------------------------------------------------------------------------------


def test_there_is_an_example_for_each_need_and_the_table_names_it() -> None:
    assert len(NEEDS) >= 10
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(([a-z-]+)\)", table)) == set(NEEDS)


@pytest.mark.parametrize("need", NEEDS)
def test_an_example_does_what_its_cases_say_and_all_its_rules_are_covered(aegis: Aegis, need: str) -> None:
    done = aegis("policy", "test", str(EXAMPLES / need), "--fail-uncovered")
    assert done.exit_code == 0, done.output
    assert "WRONG" not in done.stdout
    valid = aegis("config", "validate", str(EXAMPLES / need / "aegis.yaml"))
    assert "warning" not in valid.stderr.replace("every user of this machine", ""), valid.stderr


@pytest.mark.parametrize("need", NEEDS)
def test_without_any_one_of_its_policies_a_case_of_an_example_goes_wrong(
    aegis: Aegis, need: str, tmp_path: Path
) -> None:
    for file in sorted((EXAMPLES / need).glob("*.cedar")):
        text = file.read_text(encoding="utf-8")
        statements = re.findall(r"(?:@id\([^)]*\)\s*)?^(?:permit|forbid)\(.*?;$", text, re.MULTILINE | re.DOTALL)
        assert len(statements) == len(re.findall(r"^(?:permit|forbid)\(", text, re.MULTILINE))
        for statement in statements:
            there = tmp_path / "there"
            shutil.copytree(EXAMPLES / need, there)
            (there / file.name).write_text(text.replace(statement, ""), encoding="utf-8")
            done = aegis("policy", "test", str(there))
            assert done.exit_code == 1, f"{file.name} without {statement}"
            shutil.rmtree(there)
