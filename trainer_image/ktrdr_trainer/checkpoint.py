"""Checkpoints: durable, verified, never unpickled. The loop clones, a writer thread writes.

A checkpoint is `{output}/checkpoints/{job uid}/{attempt}-{step}.safetensors` and a `.json` manifest
beside it; the manifest appears last and carries the digests, so half a checkpoint does not exist.
The previous checkpoint stays until the next is durable, and is used if the newest is damaged.
"""

import contextlib
import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal, NamedTuple

import safetensors.torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from ktrdr_api.errors import CheckpointError, KtrdrError
from ktrdr_api.run_contract import CheckpointRef
from ktrdr_trainer import files
from ktrdr_trainer.slot import Clock
from ktrdr_trainer.state import RunState, StateModel

FORMAT_VERSION: Final = 1
_KEPT: Final = 2
"""The newest, and one to fall back to."""
_NAME: Final = re.compile(r"\d+-\d+")
"""Attempt and step; files of other names are not ours."""
_SEALED: Final = re.compile(rb'\{"manifest":(.*),"sha256":"([0-9a-f]{64})"\}\n', re.DOTALL)


class Manifest(StateModel):
    """What a checkpoint says about itself."""

    format_version: Literal[1] = FORMAT_VERSION
    job_uid: str
    attempt: int
    recipe: str
    """Digest of everything that decides the numbers; another recipe must not go on from here."""
    time: str
    """RFC 3339, the trainer's clock."""
    tensors_digest: str
    """SHA-256 of the .safetensors file."""
    state: RunState


class Snapshot(NamedTuple):
    """A state that the loop no longer touches: the tensors are clones, on the CPU."""

    tensors: dict[str, Tensor]
    state: RunState
    recipe: str


class Checkpoint(NamedTuple):
    """A verified checkpoint."""

    snapshot: Snapshot
    ref: CheckpointRef


class Found(NamedTuple):
    """The newest checkpoint that is whole, and why newer ones were passed over."""

    checkpoint: Checkpoint | None
    problems: tuple[str, ...]


class CheckpointStore:
    """The checkpoints of one job, written by one attempt.

    Args:
        output: The run's output folder.
        job_uid: Tells same-named jobs apart; another job's checkpoint is refused.
        attempt: From 1; an attempt never writes beside a later one.
        clock: For the time in the manifest.
    """

    def __init__(self, output: Path, *, job_uid: str, attempt: int, clock: Clock) -> None:
        self.folder = output / "checkpoints" / job_uid
        self._output = output
        self._job_uid = job_uid
        self._attempt = attempt
        self._clock = clock
        self._damaged: set[str] = set()
        """Stems of checkpoints that `latest` passed over."""

    def latest(self) -> Found:
        """The newest whole checkpoint of this job; damaged ones are named in `problems`.

        Raises:
            CheckpointError: One belongs to another job or to a later attempt.
            TemporaryError: The volume cannot be read.
        """
        problems: list[str] = []
        for path in self._manifests():
            try:
                return Found(self._load(path), tuple(problems))
            except _DamagedError as error:
                self._damaged.add(path.stem)
                problems.append(f"Skipped damaged checkpoint {path.stem}: {error}")
        return Found(None, tuple(problems))

    def require_writable(self) -> None:
        """Write and remove a file: a run should not train for hours to learn that it cannot.

        Raises:
            CheckpointError, TemporaryError: As `save`.
        """
        with files.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f"{files.TEMPORARY_PREFIX}probe"
            files.write_synced(probe, b"?")
            probe.unlink(missing_ok=True)

    def save(self, snapshot: Snapshot) -> CheckpointRef:
        """Write a checkpoint; on return it is durable. Repeatable.

        Raises:
            CheckpointError: A later attempt writes here, or the folder may not be written.
            TemporaryError: The volume is full or failed.
        """
        with files.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._refuse_if_superseded()
            stem = f"{self._attempt:04d}-{snapshot.state.position.step:012d}"
            tensors = safetensors.torch.save(snapshot.tensors)
            manifest = Manifest(
                job_uid=self._job_uid,
                attempt=self._attempt,
                recipe=snapshot.recipe,
                time=files.rfc3339(self._clock.now()),
                tensors_digest=files.digest(tensors),
                state=snapshot.state,
            )
            text, digest = _sealed(manifest)
            files.write_durably(self.folder / f"{stem}.safetensors", tensors)
            files.write_durably(self.folder / f"{stem}.json", text)
            self._damaged.discard(stem)
            self._prune()
        return self._ref(manifest, self.folder / f"{stem}.json", digest)

    def _manifests(self) -> list[Path]:
        """Newest first: by attempt, then step."""
        ours = [path for path in self.folder.glob("*.json") if _NAME.fullmatch(path.stem)]
        return sorted(ours, key=_order, reverse=True)

    def _refuse_if_superseded(self) -> None:
        for path in self._manifests():
            if _order(path)[0] > self._attempt:
                raise CheckpointError(
                    f"{path}: attempt {self._attempt} may not write: a later attempt has begun"
                )

    def _load(self, path: Path) -> Checkpoint:
        with files.reading(path):
            try:
                manifest, digest = _unsealed(path.read_bytes())
                self._refuse_foreign(path, manifest)
                tensors = path.with_suffix(".safetensors").read_bytes()
                if files.digest(tensors) != manifest.tensors_digest:
                    raise _DamagedError("the tensors do not match their SHA-256")
                loaded = safetensors.torch.load(tensors)
            except (FileNotFoundError, ValueError, SafetensorError) as error:
                raise _DamagedError(str(error)) from error
        snapshot = Snapshot(loaded, manifest.state, manifest.recipe)
        return Checkpoint(snapshot, self._ref(manifest, path, digest))

    def _refuse_foreign(self, path: Path, manifest: Manifest) -> None:
        if manifest.job_uid != self._job_uid:
            raise CheckpointError(
                f"{path}: belongs to job {manifest.job_uid}, not {self._job_uid}; move it away"
            )
        if manifest.attempt > self._attempt:
            raise CheckpointError(
                f"{path}: written by attempt {manifest.attempt}; attempt {self._attempt} is over"
            )

    def _ref(self, manifest: Manifest, path: Path, digest: str) -> CheckpointRef:
        position = manifest.state.position
        return CheckpointRef(
            epoch=position.current_epoch,
            step=position.step,
            path=path.relative_to(self._output).as_posix(),
            time=manifest.time,
            digest=f"sha256:{digest}",
        )

    def _prune(self) -> None:
        """Remove older and damaged checkpoints, and what killed writers left; manifests first."""
        whole = [path.stem for path in self._manifests() if path.stem not in self._damaged]
        kept = whole[:_KEPT]
        for pattern in ("*.json", "*.safetensors", f"{files.TEMPORARY_PREFIX}*"):
            for path in self.folder.glob(pattern):
                name = path.stem.removeprefix(files.TEMPORARY_PREFIX)
                if path.stem not in kept and _NAME.fullmatch(name):
                    path.unlink(missing_ok=True)


class CheckpointWriter:
    """Writes in a thread, one checkpoint at a time; nothing is queued.

    A context manager: leaving it waits for the write on its way.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._write: Future[CheckpointRef] | None = None
        self.last: CheckpointRef | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    @property
    def is_busy(self) -> bool:
        """Whether a write is on its way.

        Raises:
            CheckpointError, TemporaryError: The write before failed, as `CheckpointStore.save`.
        """
        if self._write is not None and self._write.done():
            self._collect(self._write)
        return self._write is not None

    def submit(self, snapshot: Snapshot) -> None:
        """Write in the background; only when not busy."""
        self._write = self._pool.submit(self._store.save, snapshot)

    def save(self, snapshot: Snapshot) -> CheckpointRef:
        """Write now, after what is on its way; on return it is durable.

        Raises:
            CheckpointError, TemporaryError: As `CheckpointStore.save`.
        """
        with contextlib.suppress(KtrdrError):  # of an older state; this one may fare better
            self.finish()
        self.last = self._store.save(snapshot)
        return self.last

    def finish(self) -> CheckpointRef | None:
        """Wait for what is on its way; the last durable checkpoint of this attempt.

        Raises:
            CheckpointError, TemporaryError: As `CheckpointStore.save`.
        """
        if self._write is not None:
            self._collect(self._write)
        return self.last

    def _collect(self, write: Future[CheckpointRef]) -> None:
        self._write = None
        self.last = write.result()


def _order(path: Path) -> tuple[int, int]:
    attempt, _, step = path.stem.partition("-")
    return int(attempt), int(step)


class _DamagedError(Exception):
    """A file is not what was written."""


def _sealed(manifest: Manifest) -> tuple[bytes, str]:
    # By pydantic, in one line: a history of 3,000 epochs takes 3 ms, which Python's json would make
    # 40, and the training waits for the lock that both need (measured).
    body = manifest.model_dump_json().encode()
    digest = files.digest(body)
    return b'{"manifest":%b,"sha256":"%b"}\n' % (body, digest.encode()), digest


def _unsealed(text: bytes) -> tuple[Manifest, str]:
    parts = _SEALED.fullmatch(text)
    if parts is None:
        raise _DamagedError("the manifest is not one")
    body, digest = parts[1], parts[2].decode()
    if digest != files.digest(body):
        raise _DamagedError("the manifest does not match its SHA-256")
    try:
        return Manifest.model_validate_json(body), digest
    except ValidationError as error:
        raise CheckpointError(
            "a checkpoint of another format cannot be read by this trainer (format "
            f"{FORMAT_VERSION}); use the image that wrote it: {error}"
        ) from error
