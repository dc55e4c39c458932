"""What surrounds the process: environment, signals, and the imports that take long.

The only module of the trainer that reads `os.environ`. Imported first by `__main__`, so it imports
nothing heavy itself: as PID 1 a process without a handler ignores SIGTERM, hence the handlers come
before the imports of torch and pandas, which take seconds.
"""

import contextlib
import importlib
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ktrdr_api import names

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_CHECK_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class ApiAccess:
    """How to reach the API server.

    Attributes:
        url: Such as `https://10.96.0.1:443`.
        token_file: Bearer token; the kubelet replaces it before it expires. None sends no token.
        ca_file: Certificate authority that must have signed the server's certificate.
    """

    url: str
    token_file: Path | None = None
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a run finds around it.

    Attributes:
        pod_uid: UID of the pod that reports; empty outside a pod.
        api: Where the API server is; None outside a pod.
        termination_log: Where the kubelet looks for the last message, if that file exists.
    """

    pod_uid: str = ""
    api: ApiAccess | None = None
    termination_log: Path = Path(names.TERMINATION_LOG)


def from_environment() -> Runtime:
    """The runtime as the pod's environment and mounts describe it."""
    # Imported late: pydantic must not delay `catch_signals`.
    from ktrdr_api.run_contract import ENV_POD_UID

    host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    mount = Path(names.TOKEN_MOUNT)
    api = None
    if host:
        host = f"[{host}]" if ":" in host else host
        api = ApiAccess(f"https://{host}:{port}", mount / "token", mount / "ca.crt")
    return Runtime(pod_uid=os.environ.get(ENV_POD_UID, ""), api=api)


def catch_signals() -> int:
    """Keep every SIGTERM and SIGINT from now on in a pipe, for `listen`; call from the main thread.

    Not in a Python handler: those run between two bytecodes of the main thread, so they wait for
    long C calls to return, and one that takes a lock which the main thread holds never returns. The
    C-level handler writes the number into the pipe at once, whatever the main thread is doing.

    Returns:
        The end of the pipe to read.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)
    return reader


def listen(reader: int, handle: Callable[[signal.Signals], None]) -> None:
    """Call `handle`, in a thread of its own, for every signal that was or will be caught."""

    def drain() -> None:
        while received := os.read(reader, 1):
            handle(signal.Signals(received[0]))

    threading.Thread(target=drain, name="signals", daemon=True).start()


def import_in_thread(module: str) -> Callable[[Callable[[], None]], None]:
    """Begin to import `module` while the caller reads files.

    Returns:
        Waits for the import to end; what it is given is called several times a second and raises
        to stop: from a cold disk, importing torch takes longer than a cancelled run may live. An
        import that failed is repeated there, so that the error arrives where it can be handled.
    """
    thread = threading.Thread(target=_try_import, args=(module,), name="imports", daemon=True)
    thread.start()

    def wait(check_stop: Callable[[], None]) -> None:
        while thread.is_alive():
            check_stop()
            thread.join(_CHECK_SECONDS)
        importlib.import_module(module)

    return wait


def _try_import(module: str) -> None:
    with contextlib.suppress(Exception):  # `wait` repeats it, in the thread that can handle it
        importlib.import_module(module)
