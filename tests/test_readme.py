"""Both READMEs say what the code does, and both say the same."""

import json
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

import errors
from align import LANGUAGES as ALIGNED
from request import LANGUAGES, Request
from settings import Settings
from usage import Usage

ROOT = Path(__file__).parent.parent
READMES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_zh-CN.md")}
# codes that no client ever sees, told in the sentence below the table
FOR_NOBODY = {"settings_invalid", "alignment_failed", "recognition_failed"}

in_each = pytest.mark.parametrize("readme", READMES)


def rows(readme: str, first: str) -> dict[str, list[str]]:
    """The table whose head begins with `first`: first cell without backticks → the others."""
    table = re.search(rf"^\| {re.escape(first)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", READMES[readme], re.MULTILINE)
    cells = [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in table[1].splitlines()]
    return {key.strip(): rest for first_cell, *rest in cells for key in re.findall(r"`([^`]+)`", first_cell)}


def tree(error: type[errors.WorkerError]) -> list[type[errors.WorkerError]]:
    return [error, *(e for child in error.__subclasses__() for e in tree(child))]


@in_each
def test_every_setting_stands_in_the_table_with_its_default(readme):
    told = rows(readme, "variable" if readme == "README.md" else "变量")
    assert list(told) == [f.name.upper() for f in fields(Settings)]
    for f in fields(Settings):
        if f.default is not MISSING:
            shown = told[f.name.upper()][0].strip("`")
            assert shown == (f"{f.default:.16g}" if f.type in (int, float) else str(f.default).lower() if f.type is bool else f.default)


@in_each
def test_every_error_code_stands_in_the_table_with_what_to_do(readme):
    told = {code: retryable == "yes" for code, (retryable, _) in rows(readme, "`error_code`").items()}
    assert told == {e.code: e.retryable for e in tree(errors.WorkerError) if e.code not in FOR_NOBODY}
    assert all(f"`{code}`" in READMES[readme] for code in FOR_NOBODY)


@in_each
def test_every_reason_for_asking_again_stands_in_the_table(readme):
    told = set(rows(readme, "reason" if readme == "README.md" else "原因"))
    faults = set(re.findall(r'"([a-z_]+)"', (ROOT / "src" / "fallback.py").read_text())) - {"length"}  # vLLM's finish_reason
    assert told == faults | {"language"}


@in_each
def test_every_field_of_a_request_stands_in_the_table(readme):
    tables = [set(rows_at) for rows_at in (rows(readme, "field" if readme == "README.md" else "字段"),)]
    assert tables[0] == {f.name for f in fields(Request)}


@in_each
def test_every_count_of_a_usage_stands_in_the_table_and_in_the_example(readme):
    told = list(rows(readme, "in `usage`" if readme == "README.md" else "`usage` 中"))
    (example,) = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", READMES[readme], re.DOTALL) if block.startswith('{"audio_seconds"'))
    assert sorted(told) == sorted(example) == sorted(Usage().to_output(1, Settings(model_name="m", aligner_name="a")))


@in_each
def test_every_language_is_named_and_those_with_an_aligner_once_more(readme):
    lines = READMES[readme].splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(("**Languages**", "**语言**")))
    named = [re.findall(r"[A-Z][a-z]+", line.split(":" if readme == "README.md" else "：", 1)[1]) for line in lines[at : at + 2]]
    assert named[0] == list(LANGUAGES) and len(named[1]) == len(ALIGNED) and set(named[1]) == ALIGNED


@in_each
def test_every_file_and_folder_named_is_there(readme):
    named = re.findall(r"\]\((?!http)([^)#]+)\)|`((?:src|builder|tests|\.runpod)/[\w./-]*)`|(?:bash|python) ((?:src|builder|tests)/[^\s`]+)", READMES[readme])
    assert len(named) > 5
    for path in {p for match in named for p in match if p}:
        assert (ROOT / path.strip("`")).exists(), path


def test_both_have_the_same_headings_tables_and_code():
    outlines = []
    for text in READMES.values():
        code = re.findall(r"^ *```\w*\n.*?^ *```", text, re.MULTILINE | re.DOTALL)
        commands = [re.sub(r"(^| +)(#|// ).*", "", c, flags=re.MULTILINE) for c in code]
        prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
        headings = [len(h) for h in re.findall(r"^(#+) ", prose, re.MULTILINE)]
        firsts = [re.findall(r"`[^`]+`", line.split(" | ")[0]) for line in prose.splitlines() if line.startswith("|")]
        outlines.append((headings, [" ".join(c.split()) for c in commands], firsts, len(re.findall(r"^ *(?:-|\d\.) ", prose, re.MULTILINE))))
    english, chinese = outlines
    assert english == chinese


def test_every_figure_stands_in_both():
    """Numbers of the measured section, in order."""
    english, chinese = (
        re.findall(r"\d+(?:\.\d+)?(?= (?:%|ms)| \|)", text[text.index(head) :])
        for text, head in zip(READMES.values(), ("## Measured", "## 实测"))
    )
    assert english and english == chinese


@in_each
def test_no_path_of_a_machine_stands_in_it(readme):
    assert not re.search(r"/(?:home|root|work|tmp)/", READMES[readme])
