"""All benchmarks, or those named: bash tests/bench/run.sh [--quick] [front_end first_chunk
whole_job simulated load aligner confidence cold_start]
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDERS = [str(ROOT / folder) for folder in ("src", "tests", "tests/bench", "tests/models/recipe")]
sys.path[:0] = FOLDERS
sys.path.append(str(ROOT / ".venv" / "bench"))  # last, so that the worker's own packages come first
os.environ["PYTHONPATH"] = os.pathsep.join(FOLDERS)  # for the child processes that are measured
NAMES = (
    "front_end",
    "first_chunk",
    "whole_job",
    "simulated",
    "load",
    "aligner",
    "confidence",
    "cold_start",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}; all of them without"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="short recordings: some minutes in all, and rougher figures",
    )
    a = parser.parse_args()
    if unknown := set(a.names) - set(NAMES):
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(NAMES)}")
    for name in a.names or NAMES:
        importlib.import_module(name).run(a.quick)
    try:
        import plots
    except ImportError:
        print("matplotlib is not installed: no plots")
    else:
        plots.draw()


if __name__ == "__main__":
    main()
