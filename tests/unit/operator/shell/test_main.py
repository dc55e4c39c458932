import asyncio

import pytest

from ktrdr_operator import __main__ as entry
from ktrdr_operator.__main__ import TaskExitedError, run_tasks, run_until_stopped


async def forever(ended: list[str] | None = None) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        if ended is not None:
            ended.append("ended")


async def die() -> None:
    await asyncio.sleep(0)
    raise OSError("watch died")


async def test_run_all_part_that_dies_ends_all_with_its_error() -> None:
    ended: list[str] = []
    with pytest.raises(OSError, match="watch died"):
        await run_tasks({"a": forever(ended), "b": die()})
    assert ended == ["ended"]


async def test_run_all_part_that_returns_is_an_error_with_its_name() -> None:
    with pytest.raises(TaskExitedError, match="resync"):
        await run_tasks({"a": forever(), "resync": asyncio.sleep(0)})


async def test_until_stop_cancels_the_part() -> None:
    stop, ended = asyncio.Event(), list[str]()
    asyncio.get_running_loop().call_later(0.01, stop.set)
    await run_until_stopped(stop, forever(ended))
    assert ended == ["ended"]


async def test_until_part_that_dies_raises() -> None:
    with pytest.raises(OSError, match="watch died"):
        await run_until_stopped(asyncio.Event(), die())


def test_main_with_bad_settings_names_the_variable_and_exits_2(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ktrdr_operator.logs.configure", lambda *_: None)
    monkeypatch.setenv("KTRDR_WORKERS", "many")
    monkeypatch.delenv("KTRDR_TRAINER_IMAGE", raising=False)
    said: list[str] = []
    monkeypatch.setattr(entry.log, "critical", lambda text, *args: said.append(text % args))
    assert entry.main() == 2
    assert said[0] == "KTRDR_TRAINER_IMAGE: Field required"
    assert said[1].startswith("KTRDR_WORKERS: Input should be a valid integer")
