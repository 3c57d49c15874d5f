"""src/ keeps its order of imports and its measures; the measuring itself is checked on small code.

bash tests/run.sh tests/test_style.py -s      prints the table of measures
"""

from statistics import median

import measure_style as style
import pytest

MAX_LINE_TOKENS_P90 = 16
MAX_FUNCTION_LINES = 50
MAX_FUNCTION_LINES_P90 = 30
MAX_FUNCTION_LINES_MEDIAN = 10


def code(**texts: str) -> dict[str, style.Module]:
    """Modules by name, `__` for the dot."""
    names = {name: name.replace("__", ".") for name in texts}
    return {names[name]: style.Module(names[name], text) for name, text in texts.items()}


@pytest.fixture(scope="module")
def src() -> dict[str, style.Module]:
    return style.modules_in(style.SRC)


@pytest.fixture(scope="module")
def measures(src) -> style.Measures:
    found = style.measured(list(src.values()))
    print("", *(f"| {name} | {value} |" for name, value in found.rows()), sep="\n")
    return found


# -- src/


def test_every_module_imports_only_its_own_row_and_those_above(src):
    assert style.upward_imports(src) == []


def test_no_imports_go_round_in_a_circle(src):
    assert style.circle(src) == []


def test_the_decoder_and_the_worker_import_nothing_of_each_other(src):
    assert style.imports_across_the_decoders_door(src) == []


def test_no_line_is_over_100_characters(src):
    assert style.long_lines(list(src.values())) == []


def test_nine_lines_in_ten_have_at_most_16_tokens(measures):
    assert measures.line_tokens_p90 <= MAX_LINE_TOKENS_P90


def test_functions_are_short(src, measures):
    assert style.long_functions(list(src.values()), MAX_FUNCTION_LINES) == []
    lines = measures.function_lines
    assert style.p90(lines) < MAX_FUNCTION_LINES_P90
    assert median(lines) < MAX_FUNCTION_LINES_MEDIAN


# -- the measuring


def test_an_import_of_a_lower_row_is_found():
    modules = code(contract__a="def f():\n    from speech import b\n", speech__b="")
    assert style.upward_imports(modules) == ["contract.a imports speech.b, which is below it"]


def test_a_module_in_no_row_is_found():
    assert style.upward_imports(code(helpers="")) == ["helpers is in no row of LAYERS"]


def test_a_circle_is_found_with_its_names():
    modules = code(speech__a="import speech.b\n", speech__b="from speech.a import x\n")
    assert style.circle(modules) == ["speech.a", "speech.b", "speech.a"]


@pytest.mark.parametrize(
    ("importer", "text"),
    [
        ("recording.decoder.track", "from contract.errors import X\n"),
        ("recording.pcm_stream", "from recording.decoder import track\n"),
        ("recording.pcm_stream", "import track\n"),
    ],
)
def test_an_import_across_the_decoders_door_is_found(importer, text):
    modules = {
        name: style.Module(name, "") for name in ("recording.decoder.track", "contract.errors")
    }
    modules[importer] = style.Module(importer, text)
    assert len(style.imports_across_the_decoders_door(modules)) == 1


def test_the_measures_of_small_code_are_those_counted_by_hand():
    text = '''def f(a: int, b):
    """Say."""
    return [x for x in a]  # why

# alone
async def g(self):
    pass
'''
    module = style.Module("m", text)
    found = style.measured([module, module])
    assert found.function_lines == [3, 2, 3, 2]
    assert style.tokens_by_line(module) == [10, 1, 8, 7, 1]
    assert found.function_tokens == [19, 8, 19, 8]
    assert found.comprehensions == 2 * 1000 / 54
    assert found.trailing_comments == 2 * 100 / 12
    assert found.module_lines == [6, 6]
    assert found.typed_arguments == 50
    assert style.measured([module, style.Module("n", f"x = '{'a' * 96}'\n")]).long_lines == 1
