"""Runs programs and prints progress lines; the only module that prints."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cluster.settings import ClusterError


def say(text: str) -> None:
    """Print one line immediately, even if the output is a pipe."""
    print(text, flush=True)


def run(
    *command: str | Path,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a program to its end and return what it wrote to stdout.

    Raises:
        ClusterError: It is missing or failed; the message has the command and the end of its
            output.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, env=env, input=stdin, cwd=cwd, text=True, capture_output=True, check=False
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{words[0]}: not found; run `cluster.sh tools`") from error
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise ClusterError(f"`{shlex.join(words)}` ended with {done.returncode}:\n{tail}")
    return done.stdout


def succeeds(*command: str | Path, env: Mapping[str, str] | None = None) -> bool:
    """Whether a program exists and exits with 0; its output is dropped."""
    words = [str(word) for word in command]
    try:
        return subprocess.run(words, env=env, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def start(*command: str | Path, log: Path, env: Mapping[str, str]) -> None:
    """Start a program that outlives this process: own session, no terminal, output to `log`."""
    with log.open("ab") as output:
        subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=env,
        )


def wait_until(what: str, seconds: float, probe: Callable[[], bool]) -> None:
    """Poll `probe` ten times a second.

    Raises:
        ClusterError: `probe` was still false after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not probe():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)
