"""From the start of the process to the first optimizer step, against a bare import of torch.

`make bench-start`. Importing torch is what nobody can avoid; what the trainer adds to it (its own
imports, reading two years of hourly bars, features, the network) should hide behind it. Both are
whole processes that take turns, each ended the moment it is there: unloading torch is nobody's
start. A ratio is that of one turn, so that a busy machine slows both; the median of the turns
counts.

Where the time goes (measured, 1.9 s against 1.5 s): 0.1 s to import pydantic, urllib3 and TA-Lib,
0.1 s to build the API's and the strategy's models, 0.1 s to read the bars and compute features,
0.1 s for everything else up to the step. Little of it runs beside torch's import, which holds
Python's lock, also while it maps its libraries (0.4 s).

Exits 1 beyond 1.5: on a busy machine single turns vary that much.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from trainer_process import Workplace

GOAL: Final = 1.25
BAR: Final = 1.5
TURNS: Final = 11
ROWS: Final = 17_520

BARE: Final = "import torch, os; os._exit(0)"
TRAINER: Final = """
import os, sys
# The image has neither; TA-Lib imports them where they are installed.
sys.modules["pandas"] = sys.modules["polars"] = None
from ktrdr_trainer import runtime

begin = runtime.import_in_thread

def import_and_watch(module):
    imported = begin(module)

    def wait(check_stop):
        imported(check_stop)
        import torch
        adam = torch._fused_adam_

        def first_step(*arguments, **settings):
            adam(*arguments, **settings)
            os._exit(0)

        torch._fused_adam_ = first_step

    return wait

runtime.import_in_thread = import_and_watch
from ktrdr_trainer.__main__ import main
sys.exit(f"ended without a step: {main(['--request', sys.argv[1]])}")
"""


def seconds_of(*arguments: str) -> float:
    """Wall time of a Python process, which must succeed."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", *arguments], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(done.stderr)
    return seconds


def make_request(folder: Path) -> str:
    place = Workplace(folder / "job")
    place.write_data(rows=ROWS)
    dates = {"start": "2020-01-01", "end": "2021-12-31"}
    place.strategy["training_data"]["date_range"] = dates
    return str(place.write_request(reporting="none"))


def turns(request: str) -> list[tuple[float, float]]:
    """Seconds of the trainer and of the bare import; who goes first alternates."""
    pairs = []
    for turn in range(TURNS + 1):
        before = seconds_of(BARE) if turn % 2 else 0.0
        trainer = seconds_of(TRAINER, request)
        pairs.append((trainer, before or seconds_of(BARE)))
    return pairs[1:]  # the first fills the page cache


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        pairs = turns(make_request(Path(folder)))
    trainer, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(ours / theirs for ours, theirs in pairs)
    ratio = statistics.median(ratios)
    verdict = "ok" if ratio <= GOAL else "SHORT" if ratio <= BAR else "FAIL"
    print(f"{'first step s':>13} {'import torch s':>15} {'ratio':>6} {'range':>12} {'goal':>5}")
    print(
        f"{trainer:>13.2f} {bare:>15.2f} {ratio:>6.2f} {ratios[0]:>5.2f}..{ratios[-1]:<5.2f} "
        f"{GOAL:>5.2f} {verdict}"
    )
    words = {
        "ok": "the goal holds",
        "SHORT": f"short of its goal {GOAL}, within {BAR}",
        "FAIL": f"beyond {BAR}",
    }
    print(f"bench-start: {words[verdict]} (medians of {TURNS} turns)")
    return 1 if verdict == "FAIL" else 0


if __name__ == "__main__":
    sys.exit(main())
