"""Checkpoints on disk: whole or absent, verified, fenced."""

import errno
import json
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from ktrdr_api.errors import CheckpointError, TemporaryError
from ktrdr_api.run_contract import CheckpointRef
from ktrdr_trainer import files
from ktrdr_trainer.checkpoint import CheckpointStore, CheckpointWriter, Snapshot
from ktrdr_trainer.state import EpochRecord, Position, RunState, Selection
from loop_builders import still_clock, store

FOLDER = Path("checkpoints/job-1")


def snapshot(step: int = 10, value: float = 0.1) -> Snapshot:
    state = RunState(
        position=Position(epoch=1, batch=3, step=step, loss_sum=0.1 + 0.2, correct=5),
        selection=Selection(best_epoch=1, best_value=1 / 3, reference_value=1 / 3),
        history=(
            EpochRecord(
                epoch=1,
                train_loss=1 / 7,
                train_accuracy=0.5,
                val_loss=1e-17,
                val_accuracy=1.0,
                learning_rate=0.001,
                duration_seconds=1.5,
                timestamp="2024-05-06T07:08:09Z",
            ),
        ),
    )
    return Snapshot({"parameters": torch.full((4,), value)}, state, recipe="r")


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Stands for a full volume: a write fails half-way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:  # the whole process has it, the one who writes the test's report included
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_checkpoint_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    ref = store(tmp_path).save(snapshot())
    found = store(tmp_path, attempt=2).latest()
    assert found.problems == ()
    assert found.checkpoint is not None
    assert found.checkpoint.snapshot.state == snapshot().state
    assert found.checkpoint.snapshot.recipe == "r"
    assert torch.equal(found.checkpoint.snapshot.tensors["parameters"], torch.full((4,), 0.1))
    assert (
        found.checkpoint.ref
        == ref
        == CheckpointRef(
            epoch=2,
            step=10,
            path="checkpoints/job-1/0001-000000000010.json",
            time="2024-05-06T07:08:09Z",
            digest=ref.digest,
        )
    )
    manifest = json.loads((tmp_path / ref.path).read_text())
    assert ref.digest == f"sha256:{manifest['sha256']}"


def test_checkpoint_of_a_new_job_does_not_exist(tmp_path: Path) -> None:
    store(tmp_path).save(snapshot())
    assert store(tmp_path, uid="job-2").latest() == (None, ())


def test_checkpoints_beyond_the_newest_two_are_removed(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        store(tmp_path).save(snapshot(step))
    names = sorted(path.name for path in (tmp_path / FOLDER).iterdir())
    assert names == [
        f"0001-{step:012d}.{kind}" for step in (15, 20) for kind in ("json", "safetensors")
    ]


def test_checkpoint_of_a_later_attempt_is_newer_whatever_its_step(tmp_path: Path) -> None:
    store(tmp_path, attempt=1).save(snapshot(50))
    store(tmp_path, attempt=2).save(snapshot(20))
    found = store(tmp_path, attempt=3).latest()
    assert found.checkpoint is not None
    assert found.checkpoint.ref.step == 20


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _other_json(path: Path) -> None:
    path.write_text('{"manifest": [], "sha256": "0"}')


@pytest.mark.parametrize("harm", [_cut, _flip, _empty, _other_json, Path.unlink])
@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_checkpoint_that_is_damaged_falls_back_and_says_so(
    tmp_path: Path, harm: object, kind: str
) -> None:
    store(tmp_path).save(snapshot(10))
    newest = (tmp_path / store(tmp_path).save(snapshot(20)).path).with_suffix(f".{kind}")
    assert callable(harm)
    harm(newest)
    found = store(tmp_path).latest()
    assert found.checkpoint is not None
    assert found.checkpoint.ref.step == 10
    if newest.with_suffix(".json").exists():
        assert len(found.problems) == 1
        assert "damaged checkpoint 0001-000000000020: " in found.problems[0]


def test_checkpoint_that_is_damaged_is_not_kept_as_the_one_to_fall_back_to(tmp_path: Path) -> None:
    store(tmp_path).save(snapshot(10))
    _flip((tmp_path / store(tmp_path).save(snapshot(20)).path).with_suffix(".safetensors"))
    second = store(tmp_path, attempt=2)
    assert second.latest().checkpoint is not None
    _flip(tmp_path / second.save(snapshot(15)).path)
    found = store(tmp_path, attempt=3).latest()
    assert found.checkpoint is not None
    assert found.checkpoint.ref.step == 10
    assert len(found.problems) == 1


def test_checkpoint_written_again_where_a_damaged_one_was_stays(tmp_path: Path) -> None:
    path = (tmp_path / store(tmp_path).save(snapshot(20)).path).with_suffix(".safetensors")
    _flip(path)
    again = store(tmp_path)
    assert again.latest().checkpoint is None
    again.save(snapshot(20))
    assert store(tmp_path).latest().checkpoint is not None


def test_checkpoint_that_does_not_fit_on_the_volume_leaves_nothing_of_itself(
    tmp_path: Path,
) -> None:
    store(tmp_path).save(snapshot(10))
    before = sorted((tmp_path / FOLDER).iterdir())
    with (
        pytest.raises(TemporaryError, match="File too large; check the output volume"),
        file_size_limit(64),
    ):
        store(tmp_path).save(snapshot(20))
    assert sorted((tmp_path / FOLDER).iterdir()) == before


def test_checkpoints_all_damaged_means_from_the_start_and_says_so(tmp_path: Path) -> None:
    for step in (10, 20):
        _flip((tmp_path / store(tmp_path).save(snapshot(step)).path).with_suffix(".safetensors"))
    found = store(tmp_path).latest()
    assert found.checkpoint is None
    assert len(found.problems) == 2


def test_checkpoint_of_another_job_is_refused(tmp_path: Path) -> None:
    store(tmp_path).save(snapshot())
    (tmp_path / FOLDER).rename(tmp_path / "checkpoints" / "job-2")
    with pytest.raises(CheckpointError, match="belongs to job job-1, not job-2"):
        store(tmp_path, uid="job-2").latest()


def test_checkpoint_of_a_later_attempt_fences_the_earlier_one(tmp_path: Path) -> None:
    store(tmp_path, attempt=2).save(snapshot())
    with pytest.raises(CheckpointError, match="later attempt has begun"):
        store(tmp_path, attempt=1).save(snapshot())
    with pytest.raises(CheckpointError, match="attempt 1 is over"):
        store(tmp_path, attempt=1).latest()


def test_checkpoint_of_another_format_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / store(tmp_path).save(snapshot()).path
    body = path.read_text().removeprefix('{"manifest":').partition(',"sha256"')[0]
    body = body.replace('"format_version":1', '"format_version":2')
    path.write_text(f'{{"manifest":{body},"sha256":"{files.digest(body.encode())}"}}\n')
    with pytest.raises(CheckpointError, match=r"of another format .*use the image that wrote it"):
        store(tmp_path).latest()


def test_checkpoint_left_half_written_by_a_kill_is_removed_by_the_next(tmp_path: Path) -> None:
    store(tmp_path).save(snapshot(10))
    (tmp_path / FOLDER / ".tmp-0001-000000000020.safetensors").write_bytes(b"half")
    (tmp_path / FOLDER / "0001-000000000015.safetensors").write_bytes(b"no manifest yet")
    (tmp_path / FOLDER / "notes.json").write_text("a person's, not ours")
    found = store(tmp_path, attempt=2).latest()
    assert found.checkpoint is not None
    assert found.checkpoint.ref.step == 10
    store(tmp_path, attempt=2).save(snapshot(30))
    assert sorted(path.stem for path in (tmp_path / FOLDER).glob("*")) == sorted(
        [*(2 * ["0001-000000000010", "0002-000000000030"]), "notes"]
    )


def test_writing_errors_name_path_and_remedy() -> None:
    for number, kind, remedy in (
        (errno.ENOSPC, TemporaryError, "free space on the output volume"),
        (errno.EROFS, CheckpointError, "must be writable for user"),
        (errno.EIO, TemporaryError, "check the output volume"),
    ):
        with pytest.raises(kind, match=f"/out/x: .*{remedy}"), files.writing(Path("/out/x")):
            raise OSError(number, "what the system says")


def test_writer_saves_in_the_background_and_leaves_no_thread(tmp_path: Path) -> None:
    with CheckpointWriter(store(tmp_path)) as writer:
        assert writer.finish() is None
        writer.submit(snapshot(10))
        first, second = writer.finish(), writer.save(snapshot(20))
        assert not writer.is_busy
    assert first is not None
    assert (first.step, second.step) == (10, 20)
    assert not [t for t in threading.enumerate() if t.name.startswith("checkpoint")]


def test_writer_that_failed_raises_at_the_next_question(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    with CheckpointWriter(store(tmp_path)) as writer:
        writer.submit(snapshot())
        with pytest.raises(TemporaryError, match=r"checkpoints.*check the output volume"):
            writer.finish()
        assert not writer.is_busy


class _FullOnce(CheckpointStore):
    """A volume that was full for a moment."""

    is_full = True

    def save(self, snapshot: Snapshot) -> CheckpointRef:
        if self.is_full:
            self.is_full = False
            raise TemporaryError("full")
        return super().save(snapshot)


def test_writer_that_failed_saves_a_newer_state_all_the_same(tmp_path: Path) -> None:
    volume = _FullOnce(tmp_path, job_uid="job-1", attempt=1, clock=still_clock())
    with CheckpointWriter(volume) as writer:
        writer.submit(snapshot(10))
        assert writer.save(snapshot(20)).step == 20
