"""The tools of the benchmarks: sides in turn, medians, tables, long recordings, and a reference
worker that drops no sound.
"""

import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent / "bench"))

import inputs
import measure
import media
import reference
from material import ENGLISH
from measure import Cost, cost_of, in_turn, table
from recording.chunk import SAMPLE_RATE


def test_the_sides_take_turns_and_the_median_of_each_counts():
    calls, costs = [], iter(range(1, 7))

    def side(name):
        def once():
            calls.append(name)
            return Cost(next(costs), 0, 0)

        return once

    medians = in_turn({"ours": side("ours"), "theirs": side("theirs")}, repeats=3)
    assert calls == ["ours", "theirs"] * 3 and (medians["ours"].wall, medians["theirs"].wall) == (
        3,
        4,
    )


def test_the_cost_of_a_process_is_that_of_its_children_too():
    work = (
        "import subprocess, sys, json; subprocess.run([sys.executable, '-c', 'import time; "
        "sum(range(5_000_000)); time.sleep(1)']); print(json.dumps({'said': 1}))"
    )
    cost, said = cost_of(["-c", work])
    assert said == {"said": 1} and cost.cpu > 0 and cost.peak > 5


def test_a_side_that_fails_is_an_error_and_not_measured():
    with pytest.raises(RuntimeError, match="ended with 3"):
        cost_of(["-c", "raise SystemExit(3)"])


def test_the_columns_of_a_table_are_aligned():
    assert (
        table("t", ["", "wall s"], [["ours", 0.5], ["theirs", 12345.0]])
        == "t\n-\n        wall s\nours       0.5\ntheirs   12345\n"
    )


def test_quick_figures_do_not_overwrite_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    for quick in (False, True):
        measure.write("x", {"a": Cost(1, 2, 3)}, quick)
    assert json.loads((tmp_path / "x.json").read_text())["figures"] == {
        "a": {"wall": 1, "cpu": 2, "peak": 3}
    }
    assert (tmp_path / "quick" / "x.json").exists()


@pytest.mark.parametrize("suffix", inputs.FORMATS)
def test_a_long_recording_is_a_short_one_over_and_over(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(inputs, "LOOP_SECONDS", 4)
    with av.open(str(inputs.recording(tmp_path, 12, suffix))) as container:
        seconds = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    assert abs(seconds - 12) < 0.3


def test_the_chunks_of_the_reference_worker_cover_the_whole_recording(tmp_path, file_server):
    import soundfile

    pcm = np.concatenate([u.pcm for u in ENGLISH[:6]])
    media.encode(pcm, file_server.folder / "bench.wav")
    paths = reference.front_end(file_server.url("bench.wav"), tmp_path, 5)
    assert (
        len(paths) > 2
        and abs(sum(soundfile.info(p).frames for p in paths) - len(pcm)) < SAMPLE_RATE // 100
    )
