"""A run that was promised a GPU and has none: this machine is such a one, or is made to look so."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ktrdr_api.errors import CancellationError, TemporaryError
from ktrdr_trainer.gpu_check import GpuCheck, find_problem
from ktrdr_trainer.request import read_request
from ktrdr_trainer.run import run
from ktrdr_trainer.runtime import Runtime
from ktrdr_trainer.stop import StopToken
from trainer_process import Workplace


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system. Please check that you have one")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)


@pytest.fixture
def signals() -> Iterator[int]:
    """A pipe without signals, closed at the end, so that the thread that reads it ends."""
    reader, writer = os.pipe()
    yield reader
    os.close(writer)
    logging.captureWarnings(False)


def outcome(place: Workplace, signals: int, *, gpus: int) -> dict[str, Any]:
    file = place.write_request(gpus=gpus)
    around = Runtime(termination_log=place.termination_log)
    code = run(lambda: read_request(file), around, signals=signals, wait_for_torch=lambda _: None)
    return {**place.last_words, "code": code}


@pytest.mark.usefixtures("no_gpu")
def test_run_with_a_gpu_requested_and_none_found_fails_while_it_reads_the_data(
    tmp_path: Path, signals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(*_: object, check_stop: Callable[[], None], **__: object) -> None:
        while True:  # data that take hours to read
            check_stop()
            time.sleep(0.01)

    monkeypatch.setattr("ktrdr_trainer.pipeline.prepare.prepare", endless)
    got = outcome(Workplace(tmp_path / "job"), signals, gpus=1)
    assert (got["code"], got["reason"]) == (75, "TrainerFailed")
    assert got["message"].startswith(
        f"the pod requests 1 GPU, but PyTorch {torch.__version__}, built for "
        f"CUDA {torch.version.cuda}, finds none (Found no NVIDIA driver on your system); check "
    )
    assert [w for w in ("driver", "device plugin") if w not in got["message"]] == []


@pytest.mark.usefixtures("no_gpu")
def test_run_with_a_gpu_requested_and_none_found_does_not_train(
    tmp_path: Path, signals: int, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Workplace(tmp_path / "job")
    place.write_data()
    assert outcome(place, signals, gpus=2)["code"] == 75
    stages = [json.loads(line).get("stage") for line in capsys.readouterr().err.splitlines()]
    assert set(stages) == {None, "Preparing"}


@pytest.mark.usefixtures("no_gpu")
def test_run_without_a_gpu_requested_trains_on_the_cpu(tmp_path: Path, signals: int) -> None:
    place = Workplace(tmp_path / "job")
    place.write_data()
    assert outcome(place, signals, gpus=0)["code"] == 0


@pytest.mark.parametrize(
    ("build", "devices", "words"),
    [
        (("13.2", None), 1, None),
        ((None, "7.1"), 1, None),
        (("13.2", None), 0, ["requests 2 GPUs", "CUDA 13.2", "no device", "driver"]),
        ((None, "7.1"), 0, ["requests 2 GPUs", "ROCm 7.1", "no device", "driver"]),
        ((None, None), 0, ["requests 2 GPUs", "the CPU only", "trainer image"]),
    ],
)
def test_find_problem_for_each_build_names_what_was_found_and_what_to_check(
    monkeypatch: pytest.MonkeyPatch,
    build: tuple[str | None, str | None],
    devices: int,
    words: list[str] | None,
) -> None:
    for kind, version in zip(("cuda", "hip"), build, strict=True):
        monkeypatch.setattr(torch.version, kind, version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    got = find_problem(2)
    if words is None:
        assert got is None
    else:
        assert got is not None
        assert [word for word in words if word not in got] == []


def test_find_problem_with_a_driver_too_old_for_the_build_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The GPU is there; `loop.default_device` would choose the CPU all the same."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    assert find_problem(1) is not None


@pytest.mark.usefixtures("no_gpu")
def test_gpu_check_does_not_hold_up_its_caller_and_ends_its_wait_at_a_stop() -> None:
    go, token = StopToken(), StopToken()

    def slow_import(_: Callable[[], None]) -> None:
        while not go.is_cancelled:
            time.sleep(0.01)

    check = GpuCheck(1, slow_import)
    check.raise_if_failed()
    token.cancel("sigterm")
    with pytest.raises(CancellationError):
        check.wait(token.raise_if_cancelled)
    go.cancel("go")
    with pytest.raises(TemporaryError, match="requests 1 GPU"):
        check.wait(lambda: None)
