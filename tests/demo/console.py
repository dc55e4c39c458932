"""Console output of the demo: commands as the user could type them, and the time of each step.

The only module of the demo that prints.
"""

import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

BOLD, PLAIN = "\033[1m", "\033[0m"


class DemoError(Exception):
    """Error that the user can act on; the message says what happened and what to do."""


class Console:
    """Prints lines immediately, and measures how long each step takes."""

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours
        self._steps: list[tuple[str, float]] = []

    def print_line(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)

    def command(self, text: str) -> None:
        """Print a command that the user could type."""
        self.print_line(f"{BOLD}$ {text}{PLAIN}" if self._colours else f"$ {text}")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Print the name of a step, and measure its duration."""
        title = f"== {name}"
        self.print_line(f"\n{BOLD}{title}{PLAIN}" if self._colours else f"\n{title}")
        began = time.monotonic()
        yield
        self._steps.append((name, time.monotonic() - began))

    def summary(self) -> None:
        """Print the wall time of each step."""
        self.print_line("\nWall time")
        for name, seconds in self._steps:
            self.print_line(f"  {seconds:7.1f} s  {name}")
        self.print_line(f"  {sum(seconds for _, seconds in self._steps):7.1f} s  total")


def run(
    *words: str | Path,
    env: Mapping[str, str],
    stdin: bytes | None = None,
    seconds: float | None = None,
) -> bytes:
    """Run a program silently and return its output.

    Raises:
        DemoError: It is missing, failed, or took longer than `seconds`; the message has the
            command and the end of its output.
    """
    try:
        done = subprocess.run(
            words, env=dict(env), input=stdin, capture_output=True, timeout=seconds
        )
    except FileNotFoundError as error:
        raise DemoError(f"{words[0]}: not found; run `make tools`") from error
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"`{_shown(words)}` did not end within {seconds:g} s") from error
    if done.returncode:
        last = (done.stderr or done.stdout).decode(errors="replace").strip()[-2000:]
        raise DemoError(f"`{_shown(words)}` ended with {done.returncode}:\n{last}")
    return done.stdout


def run_merged(*words: str | Path, env: Mapping[str, str], cwd: Path) -> str:
    """Run a program and return its standard output and standard error, merged.

    Raises:
        DemoError: It failed.
    """
    done = subprocess.run(
        words, env=dict(env), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise DemoError(f"`{_shown(words)}` ended with {done.returncode}:\n{done.stdout.strip()}")
    return done.stdout.rstrip()


def run_aloud(*words: str | Path, env: Mapping[str, str]) -> None:
    """Run a program whose output goes to the terminal immediately.

    Raises:
        DemoError: It failed.
    """
    done = subprocess.run(words, env=dict(env))
    if done.returncode:
        raise DemoError(f"`{_shown(words)}` ended with {done.returncode}; see its output above")


def _shown(words: Sequence[str | Path]) -> str:
    return shlex.join(str(word) for word in words)[:400]
