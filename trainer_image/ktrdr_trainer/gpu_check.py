"""GPU check: a run whose pod requests GPUs fails if PyTorch finds none, instead of using the CPU.

Made by `run` before the data are read. The check needs torch, which is still being imported then,
and starts the driver; both take seconds, so they happen in a thread while the data are read.
"""

import contextlib
import threading
from collections.abc import Callable
from typing import Final

from ktrdr_api.errors import TemporaryError

_POLL_SECONDS: Final = 0.05
_NODE_REMEDY: Final = (
    "check that the GPU driver on the pod's node works and supports this build, and that the GPU "
    "device plugin and the pod's runtime class give the GPU to the container"
)
_IMAGE_REMEDY: Final = "use a trainer image whose PyTorch is built for CUDA or ROCm"


class GpuCheck:
    """One check, which begins immediately; nothing is checked if no GPU is requested.

    Args:
        requested: GPUs that the pod requests.
        wait_for_torch: From `runtime.import_in_thread`.
    """

    def __init__(
        self, requested: int, wait_for_torch: Callable[[Callable[[], None]], None]
    ) -> None:
        self._requested = requested
        self._wait_for_torch = wait_for_torch
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._check, name="gpu-check", daemon=True)
        if requested > 0:
            self._thread.start()

    def raise_if_failed(self) -> None:
        """Raise if the check has ended and no GPU was found; cheap.

        Raises:
            TemporaryError: Says what was requested, what was found and what to check. The next
                attempt may get a node whose GPU works.
        """
        if self._problem is not None:
            raise TemporaryError(self._problem)

    def wait(self, check_stop: Callable[[], None]) -> None:
        """Return once a GPU was found.

        Args:
            check_stop: Called several times a second; raises to stop.

        Raises:
            TemporaryError: See `raise_if_failed`.
        """
        while self._thread.is_alive():
            check_stop()
            self._thread.join(_POLL_SECONDS)
        self.raise_if_failed()

    def _check(self) -> None:
        with contextlib.suppress(ImportError, OSError):  # the caller waits for torch as well
            self._wait_for_torch(lambda: None)
            self._problem = find_problem(self._requested)


def find_problem(requested: int) -> str | None:
    """Say why PyTorch cannot use a GPU; None if it can. Imports torch."""
    import torch

    # The loop chooses its device by `is_available`; a GPU may be there and its driver too old.
    if torch.cuda.is_available() and torch.cuda.device_count() > 0:
        return None
    gpus = "1 GPU" if requested == 1 else f"{requested} GPUs"
    build = _build(torch.version.cuda, torch.version.hip)
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch has no annotation for it
        reason = "no device"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition(". ")[0].strip()
    remedy = _NODE_REMEDY if build else _IMAGE_REMEDY
    return (
        f"the pod requests {gpus}, but PyTorch {torch.__version__}, built for "
        f"{build or 'the CPU only'}, finds none ({reason}); {remedy}"
    )


def _build(cuda: str | None, hip: str | None) -> str:
    if cuda:
        return f"CUDA {cuda}"
    return f"ROCm {hip}" if hip else ""
