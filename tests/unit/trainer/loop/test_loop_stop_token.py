"""The token."""

import signal
import threading

import pytest

from ktrdr_api.errors import CancellationError
from ktrdr_trainer.stop import StopToken


def test_token_cancelled_twice_keeps_the_first_reason() -> None:
    token = StopToken()
    assert (token.is_cancelled, token.is_cancelled_requested(), token.reason) == (
        False,
        False,
        None,
    )
    token.raise_if_cancelled()
    token.cancel("cancel")
    token.cancel("sigterm")
    assert (token.is_cancelled, token.is_cancelled_requested()) == (True, True)
    assert token.reason == "cancel"
    with pytest.raises(CancellationError, match="cancel"):
        token.raise_if_cancelled()


def test_token_cancelled_from_many_threads_has_one_reason() -> None:
    token = StopToken()
    reasons = [str(number) for number in range(20)]
    threads = [threading.Thread(target=token.cancel, args=(reason,)) for reason in reasons]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert token.is_cancelled
    assert token.reason in reasons


def test_token_set_by_a_signal_handler_is_seen() -> None:
    token = StopToken()
    before = signal.signal(signal.SIGUSR1, lambda *_: token.cancel("sigterm"))
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert token.reason == "sigterm"
