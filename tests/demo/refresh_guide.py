"""Refreshes docs/guides/first-job.md: runs its commands in order and replaces their outputs.

A block of language `console` contains one command after `$ ` and its output. `make guide` calls
this on a running cluster; review the differences before you commit them.
"""

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from demo.console import Console, DemoError, run_merged
from demo.demo_environment import ROOT, DemoEnvironment, connect
from kube import RefusedError

GUIDE = ROOT / "docs/guides/first-job.md"
BLOCK = re.compile(r"```console\n\$ (?P<command>[^\n]+)\n(?P<output>.*?)```", re.DOTALL)
WATCH_SECONDS = 120


def refresh(demo_environment: DemoEnvironment, guide: Path) -> int:
    """Run every command of the guide; returns the number of commands."""
    demo_environment.kube.run("delete", "trainingjobs.ktrdr.io", "--all")
    demo_environment.kube.run(
        "delete", "events", "--all"
    )  # those of a previous first-job would be shown, too

    def block(match: re.Match[str]) -> str:
        command = match["command"]
        demo_environment.console.command(command)
        output = _output(demo_environment, shlex.split(command)).rstrip()
        lines = "\n".join(line.rstrip() for line in output.splitlines())
        return f"```console\n$ {command}\n{lines}\n```"

    text, count = BLOCK.subn(block, guide.read_text(encoding="utf-8"))
    guide.write_text(text, encoding="utf-8")
    return count


def _output(demo_environment: DemoEnvironment, words: list[str]) -> str:
    where = (
        f"--kubeconfig={demo_environment.kube.kubeconfig}",
        f"--namespace={demo_environment.kube.namespace}",
    )
    command = [words[0], *where, *words[1:]]
    if "-w" in words:
        return _watch(demo_environment, command)
    return run_merged(*command, env=demo_environment.kube.environment, cwd=ROOT)


def _watch(demo_environment: DemoEnvironment, command: list[str]) -> str:
    """Return the output of a watch until the job has finished, when a user would press Ctrl+C."""
    watcher = subprocess.Popen(
        command, env=dict(demo_environment.kube.environment), stdout=subprocess.PIPE, text=True
    )
    end = "--for=condition=Finished"
    try:
        demo_environment.kube.run(
            "wait", end, "trainingjobs.ktrdr.io/first-job", f"--timeout={WATCH_SECONDS}s"
        )
        time.sleep(1)  # the last row may arrive later
    finally:
        watcher.terminate()
        output, _ = watcher.communicate()
    return output


def main() -> int:
    """Refresh the guide; an error is printed as one message."""
    console = Console(colours=False)
    try:
        count = refresh(connect(console), GUIDE)
    except (DemoError, RefusedError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    console.print_line(f"{GUIDE.relative_to(ROOT)}: {count} outputs refreshed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
