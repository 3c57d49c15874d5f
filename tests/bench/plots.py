"""results/*.json → results/*.svg."""

import json

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "qwen3-asr-worker"  # the same figures give the same file
from matplotlib import pyplot  # noqa: E402
from measure import RESULTS  # noqa: E402

OURS, OTHERS = "#2563eb", "#9ca3af"


def draw() -> None:
    """Every plot whose figures are there."""
    for name, plot in {
        "front_end": _front_end,
        "whole_job": _whole_job,
        "simulated": _simulated,
    }.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
            plot(axes, json.loads(path.read_text())["figures"])
            axes.spines[["top", "right"]].set_visible(False)
            figure.savefig(RESULTS / f"{name}.svg", metadata={"Date": None})
            pyplot.close(figure)


def _front_end(axes, found: dict) -> None:
    formats = found["formats"]
    floors = [
        min(cost["cpu"] for side, cost in costs.items() if side not in ("ours", "reference"))
        for costs in formats.values()
    ]
    sides = {
        "one bare pass": floors,
        "this worker": [c["ours"]["cpu"] for c in formats.values()],
        "reference worker": [c["reference"]["cpu"] for c in formats.values()],
    }
    for i, (label, values) in enumerate(sides.items()):
        axes.bar(
            [x + 0.27 * (i - 1) for x in range(len(formats))],
            values,
            0.25,
            label=label,
            color=("#d1d5db", OURS, OTHERS)[i],
        )
    axes.set_xticks(range(len(formats)), [name.upper() for name in formats])
    axes.set_ylabel(f"CPU seconds for {found['seconds'] // 60} minutes")
    axes.set_title("download, decoding, voice detection")
    axes.legend(frameon=False)


def _whole_job(axes, found: dict) -> None:
    sides = {
        "the engine alone": "engine alone",
        "this worker": "ours",
        "reference worker": "reference",
    }
    speeds = [found["seconds"] / found[key] for key in sides.values()]
    axes.barh(list(sides), speeds, color=[OTHERS, OURS, OTHERS])
    axes.invert_yaxis()
    axes.bar_label(axes.containers[0], fmt="%.0f×", padding=4)
    axes.set_xlabel(f"times real time, {found['seconds'] // 60} minutes, tiny checkpoints")


def _simulated(axes, found: dict) -> None:
    gpus = found["gpus"]
    for i, recording in enumerate(next(iter(gpus.values()))):
        axes.bar(
            [x + 0.3 * i for x in range(len(gpus))],
            [by[recording]["ratio"] for by in gpus.values()],
            0.28,
            label=recording,
            color=(OURS, OTHERS)[i],
        )
    axes.set_xticks([x + 0.15 for x in range(len(gpus))], list(gpus))
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylabel("job / engine alone")
    axes.legend(frameon=False)
