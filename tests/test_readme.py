"""The READMEs say what the code does, both say the same, their snippets are valid and their links
lead somewhere.
"""

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
from contextlib import closing
from dataclasses import MISSING, fields, replace
from pathlib import Path

import contract.errors as errors
import pytest
from contract.languages import ALIGNED_LANGUAGES as ALIGNED
from contract.languages import LANGUAGES
from contract.other_names import NO_FIELD, comparable, field_meant
from contract.request import INPUT_FIELDS, OUTPUT_FORMATS, SEGMENT_LEVELS, Request
from contract.settings import Settings
from contract.subtitle_options import BOUNDS, SubtitleOptions
from result.conversation import merge_channels
from result.delivery import output_of
from result.transcript import merge
from result.usage import Usage
from runpod.serverless import parser
from speech.tokens import Token
from speech.words import ChunkResult, Word
from standin import ENDPOINT, Platform, until
from test_conversation import decoded

ROOT = Path(__file__).parent.parent
READMES = {
    name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_zh-CN.md")
}
DOCUMENTS = [
    *READMES,
    ".runpod/README.md",
    "tests/README.md",
    "tests/bench/README.md",
    "tests/models/README.md",
]
ONLY_IN_CHINESE = "## 在中国大陆构建和运行"

YES_NO = {"yes": True, "no": False, "是": True, "否": False}

in_each = pytest.mark.parametrize("readme", READMES)


def rows(readme: str, *heads: str, after: str = "") -> dict[str, list[str]]:
    """The first table, behind a line that matches `after`, whose head begins with one of `heads`.

    Each name in backticks in the first cell of a row → the other cells. `.c` behind `a.b` is the
    name a.c.
    """
    text = (
        re.split(f"^{after}$", READMES[readme], maxsplit=1, flags=re.MULTILINE)[1]
        if after
        else READMES[readme]
    )
    head = "|".join(map(re.escape, heads))
    table = re.search(rf"^\| (?:{head}) \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    told = {}
    for line in table[1].splitlines():
        first, *rest = (cell.strip() for cell in line.strip().strip("|").split(" | "))
        stem = ""
        for name in re.findall(r"`([^`]+)`", first):
            name = stem + name if name.startswith(".") else name
            stem = name.partition(".")[0]
            told[name] = rest
    return told


def response_fields(readme: str) -> set[str]:
    return {
        name.replace("[]", "")
        for name in rows(readme, "field", "字段", after="## (?:Response|响应)")
    }


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)


def tree(error: type[errors.WorkerError]) -> list[type[errors.WorkerError]]:
    return [error, *(e for child in error.__subclasses__() for e in tree(child))]


# what the code does


@in_each
def test_every_setting_stands_in_the_table_with_its_default(readme):
    told = rows(readme, "variable", "变量")
    assert list(told) == [f.name.upper() for f in fields(Settings)]
    for f in fields(Settings):
        if f.default is not MISSING:
            shown = told[f.name.upper()][0].strip("`")
            assert shown == (
                f"{f.default:.16g}"
                if f.type in (int, float)
                else str(f.default).lower()
                if f.type is bool
                else f.default
            )


@in_each
def test_every_error_code_stands_in_the_table_with_what_to_do(readme):
    table = rows(readme, "`error_code`")
    assert all(len(cells) == 3 and all(cells) for cells in table.values())
    told = {code: YES_NO[retryable] for code, (retryable, _, _) in table.items()}
    assert told == {error.code: error.retryable for error in tree(errors.WorkerError)}


@in_each
def test_every_reason_for_a_retry_stands_in_the_table(readme):
    told = set(rows(readme, "reason", "原因"))
    modules = [ROOT / "src" / "speech" / name for name in ("faults.py", "retries.py")]
    quoted = {name for path in modules for name in re.findall(r'"([a-z_]+)"', path.read_text())}
    finish_reason = "length"
    assert told == quoted - {finish_reason} | {"language"}


@in_each
def test_every_field_of_a_request_stands_in_the_table(readme):
    assert set(rows(readme, "field", "字段")) == set(INPUT_FIELDS)


@in_each
def test_every_option_of_subtitles_stands_in_the_table_with_its_default_and_bounds(readme):
    told = rows(readme, "option", "选项")
    assert list(told) == list(BOUNDS)
    for name, (least, most) in BOUNDS.items():
        default = getattr(SubtitleOptions(), name)
        assert told[name][:2] == [f"{default:.16g}", f"{least}–{most}"], name


def every_output() -> list[dict]:
    """Outputs in all formats that together have every field: two languages, an estimated word, a
    retry, a failure, a warning, a token.
    """
    words = Word("one", 0, 1, 0, estimated=True), Word("two", 1, 2, 4)
    chunks = [
        ChunkResult(
            0,
            2,
            2,
            "one two",
            "English",
            words,
            ("loop",),
            True,
            warning="Times are estimated.",
        ),
        ChunkResult(
            2, 4, 2, "drei", "German", (Word("drei", 2, 3, 0),), tokens=(Token(1, -0.1, 0, 4),)
        ),
        ChunkResult(4, 5, 1, failure="timeout"),
    ]
    requests = (
        Request(output_format=form, segment_level=level)
        for form in OUTPUT_FORMATS
        for level in SEGMENT_LEVELS
    )
    each = [replace(chunk, channel=1) for chunk in chunks]
    transcripts = (
        merge(chunks, 5, damaged=[(0, 1)]),
        merge_channels(each, decoded(5, (0, 1))),
    )
    return [output_of(transcript, request) for request in requests for transcript in transcripts]


@in_each
def test_every_field_of_a_response_stands_in_the_table(readme):
    outputs = every_output()
    given = {key for output in outputs for key in output} | {"usage", "reduced_to", "result_url"}
    given |= {
        f"segments.{key}"
        for output in outputs
        for segment in output.get("segments", ())
        for key in segment
    }
    given |= {
        f"usage.{key}" for key in Usage().to_output(1, Settings(model_name="m", aligner_name="a"))
    }
    assert response_fields(readme) == given - {"usage"}


@in_each
def test_the_example_of_a_result_has_runpods_envelope_and_fields_of_the_table(readme):
    (example,) = (
        json.loads(block)
        for block in code_blocks(READMES[readme], "json")
        if '"COMPLETED"' in block
    )
    assert set(example) == {"id", "status", "delayTime", "executionTime", "workerId", "output"}
    output, told = example["output"], response_fields(readme)
    assert (
        set(output) - {"usage"} <= told
        and {f"segments.{key}" for segment in output["segments"] for key in segment} <= told
    )
    for segment in output["segments"]:
        assert (
            output["text"][segment["offset"] : segment["offset"] + segment["length"]]
            == segment["text"]
        )


@in_each
def test_every_language_is_named_and_those_with_an_aligner_once_more(readme):
    lines = READMES[readme].splitlines()
    at = next(
        i for i, line in enumerate(lines) if line.startswith(("- **Languages**", "- **语言**"))
    )
    named = [
        re.findall(r"[A-Z][a-z]+", re.split("[:：]", line, maxsplit=1)[1])
        for line in lines[at : at + 2]
    ]
    assert named[0] == list(LANGUAGES) and [name for name in named[1] if name in LANGUAGES] == [
        n for n in named[1] if n in ALIGNED
    ]
    assert set(named[1]) & set(LANGUAGES) == ALIGNED


@in_each
def test_every_other_name_of_a_field_leads_to_the_field_beside_it(readme):
    table = re.search(r"^\| (?:here|这里) \|.*\n\|[-|]+\n((?:\|.*\n)+)", READMES[readme], re.M)
    for line in table[1].splitlines():
        here, *elsewhere = (re.findall(r"`(\w+)`", cell) for cell in line.strip("|").split("|"))
        for name in sum(elsewhere, []):
            meant = field_meant(name, INPUT_FIELDS)
            assert name in here or meant in here or comparable(name) in NO_FIELD, (name, here)


@in_each
def test_every_measured_figure_stands_among_the_benchmarks(readme):
    table = READMES[readme].split("| `bash tests/bench/run.sh whole_job` |")[0].splitlines()[-1]
    table += re.search(r"whole_job` \|\n((?:\|.*\n)+)", READMES[readme])[1]
    figures = re.findall(r"\d+(?:\.\d+)?", re.sub(r"`[^`]*`|MP3|L4", "", table))
    benchmarks = (ROOT / "tests/bench/README.md").read_text(encoding="utf-8")
    assert len(figures) >= 14
    for figure in figures:
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.]*\d)", benchmarks), figure


# snippets


@pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("jq")), reason="curl or jq is not installed"
)
@in_each
def test_a_local_file_too_large_for_a_command_line_arrives_whole(readme, tmp_path):
    (block,) = [b for b in code_blocks(READMES[readme], "bash") if "audio_base64" in b]
    recording = os.urandom(1_500_000)
    (tmp_path / "talk.mp3").write_bytes(recording)
    with closing(Platform()) as platform:
        block = block.replace("https://api.runpod.ai/v2", platform.base_url)
        block = block.replace("ENDPOINT_ID", ENDPOINT)
        with subprocess.Popen(["bash", "-c", block], cwd=tmp_path) as client:
            until(lambda: platform.jobs or client.poll() is not None, 60)
            ((job_id, job),) = platform.jobs.items()
            platform.cancel(job_id)
    assert base64.b64decode(job.request["input"]["audio_base64"]) == recording


@in_each
def test_every_option_of_the_handler_is_one_of_the_sdk(readme):
    blocks = "\n".join(code_blocks(READMES[readme], "bash")).replace("\\\n", "")
    commands = re.findall(r"handler\.py( .*?)(?: >.*)?$", blocks, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        parser.parse_args(shlex.split(command, comments=True))


def test_the_hubs_page_has_valid_blocks_and_pictures_that_are_shown_anywhere():
    page = (ROOT / ".runpod/README.md").read_text(encoding="utf-8")
    for block in code_blocks(page, "json"):
        assert set(json.loads(block)) <= response_fields("README.md")
    inputs = [json.loads(code) for code in re.findall(r"`(\{\"[^`]+\})`", page)]
    assert {key for given in inputs for key in given} <= {*INPUT_FIELDS, "policy"} - {"audio_url"}
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page):
        address, _, path = picture.partition("OWNER/REPO/main/")
        assert address == "https://raw.githubusercontent.com/" and (ROOT / path).is_file()


@in_each
def test_every_json_is_valid(readme):
    blocks = code_blocks(READMES[readme], "json")
    inline = [
        code
        for code in re.findall(r"`(\{\"[^`]+\})`", READMES[readme])
        if '":' in code and "…" not in code
    ]
    given = re.findall(r"(?:-d|--test_input) '(\{.*?\})'", READMES[readme])
    assert blocks and inline and len(given) > 3
    for text in (*blocks, *inline, *given):
        json.loads(text)


@in_each
def test_every_shell_snippet_can_be_parsed(readme):
    blocks = code_blocks(READMES[readme], "bash")
    assert len(blocks) > 4
    for block in blocks:
        assert (
            subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True).returncode
            == 0
        ), block


@in_each
def test_every_python_snippet_compiles(readme):
    blocks = code_blocks(READMES[readme], "python")
    assert blocks
    for block in blocks:
        compile(block, readme, "exec")


@pytest.mark.skipif(not shutil.which("node"), reason="Node.js is not installed")
@in_each
def test_every_javascript_snippet_can_be_parsed(readme):
    blocks = code_blocks(READMES[readme], "javascript")
    assert blocks
    for block in blocks:
        run = subprocess.run(
            ["node", "--input-type=module", "--check"], input=block, text=True, capture_output=True
        )
        assert run.returncode == 0, run.stderr


# links


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_to_a_file_and_to_a_heading_in_it(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them: lower case, spaces to hyphens, other punctuation
    dropped.
    """
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_and_folder_named_is_there(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = re.findall(
        r"`((?:src|builder|tests|\.runpod|\.github)/[\w./-]*)`|(?:bash|python) "
        r"((?:src|builder|tests)/[^\s`]+)",
        text,
    )
    for path in {p for match in named for p in match if p}:
        assert (ROOT / path).exists(), path


def test_every_test_that_proves_a_promise_is_there():
    text = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    for file, name in re.findall(r"`(test_\w+\.py)`|`(test_\w+)`", text):
        assert (ROOT / "tests" / file).is_file() if file else f"def {name}(" in code, file or name


# one README beside the other


def test_both_have_the_same_headings_tables_and_code():
    """But for the section on mainland China."""
    outlines = []
    for name, text in READMES.items():
        if name == "README_zh-CN.md":
            before, _, after = text.partition(f"{ONLY_IN_CHINESE}\n")
            text = before + after[after.index("\n## ") + 1 :]
        code = re.findall(r"^ *```\w*\n.*?^ *```", text, re.MULTILINE | re.DOTALL)
        commands = [re.sub(r"(^| +)(#|// ).*", "", c, flags=re.MULTILINE) for c in code]
        prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
        headings = [len(h) for h in re.findall(r"^(#+) ", prose, re.MULTILINE)]
        firsts = [
            re.findall(r"`[^`]+`", line.split(" | ")[0])
            for line in prose.splitlines()
            if line.startswith("|")
        ]
        outlines.append(
            (
                headings,
                [" ".join(c.split()) for c in commands],
                firsts,
                len(re.findall(r"^ *(?:-|\d\.) ", prose, re.MULTILINE)),
            )
        )
    english, chinese = outlines
    assert english == chinese


FIGURES = ("Sizing", "What is measured"), ("选型", "实测数据")  # the sections with figures


def test_every_figure_of_the_sizes_and_measures_stands_in_both():
    sections = (
        "".join(re.search(rf"^## {head}\n.*?^(?=## )", text, re.M | re.S)[0] for head in heads)
        for heads, text in zip(FIGURES, READMES.values())
    )
    english, chinese = (
        re.findall(
            r"\d+(?:\.\d+)?",
            "".join(line for line in section.splitlines(True) if line.startswith("|")),
        )
        for section in sections
    )
    assert english and english == chinese


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_path_of_a_machine_stands_in_it(document):
    assert not re.search(r"/(?:home|root|work|tmp)/", (ROOT / document).read_text(encoding="utf-8"))
