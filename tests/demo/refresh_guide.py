"""Runs the commands in docs/guides/first-job.md, in order, and puts what they print below them.

A block of language `console` holds one command after `$ ` and its output. `make guide` calls this
on a cluster that is up; the differences are for a person to read and commit.
"""

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from demo.console import Console, DemoError, run_merged
from demo.place import ROOT, Place, connect
from kube import RefusedError

GUIDE = ROOT / "docs/guides/first-job.md"
BLOCK = re.compile(r"```console\n\$ (?P<command>[^\n]+)\n(?P<output>.*?)```", re.DOTALL)
WATCH_SECONDS = 120


def refresh(place: Place, guide: Path) -> int:
    """Run every command of the guide; the number of commands."""
    place.kube.run("delete", "trainingjobs.ktrdr.io", "--all")
    place.kube.run("delete", "events", "--all")  # those of an earlier first-job would be told too

    def block(match: re.Match[str]) -> str:
        command = match["command"]
        place.console.command(command)
        output = _output(place, shlex.split(command)).rstrip()
        lines = "\n".join(line.rstrip() for line in output.splitlines())
        return f"```console\n$ {command}\n{lines}\n```"

    text, count = BLOCK.subn(block, guide.read_text(encoding="utf-8"))
    guide.write_text(text, encoding="utf-8")
    return count


def _output(place: Place, words: list[str]) -> str:
    where = (f"--kubeconfig={place.kube.kubeconfig}", f"--namespace={place.kube.namespace}")
    command = [words[0], *where, *words[1:]]
    if "-w" in words:
        return _watch(place, command)
    return run_merged(*command, env=place.kube.environment, cwd=ROOT)


def _watch(place: Place, command: list[str]) -> str:
    """What a watch prints until the job has ended: a person would press Ctrl+C then."""
    watcher = subprocess.Popen(
        command, env=dict(place.kube.environment), stdout=subprocess.PIPE, text=True
    )
    end = "--for=condition=Finished"
    try:
        place.kube.run(
            "wait", end, "trainingjobs.ktrdr.io/first-job", f"--timeout={WATCH_SECONDS}s"
        )
        time.sleep(1)  # the last row is on its way
    finally:
        watcher.terminate()
        output, _ = watcher.communicate()
    return output


def main() -> int:
    """Refresh the guide; errors end as one message."""
    console = Console(colours=False)
    try:
        count = refresh(connect(console), GUIDE)
    except (DemoError, RefusedError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    console.say(f"{GUIDE.relative_to(ROOT)}: {count} outputs refreshed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
