"""Reads what a run is told: the RunRequest and the strategy it names. All refusals are exit code 2.

Called by `run` first of all.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from ktrdr_api.errors import BadRequestError, TemporaryError
from ktrdr_api.run_contract import JobIdentity, Overrides, RunRequest
from ktrdr_api.strategy import Strategy, parse_strategy, strategy_digest, with_overrides


class PlacedRequest(NamedTuple):
    """A request, and the folder that its strategy's path starts from."""

    request: RunRequest
    folder: Path


class StrategySource(NamedTuple):
    """A strategy as written, and as it is trained: with the request's overrides."""

    text: str
    strategy: Strategy


def read_request(file: Path) -> PlacedRequest:
    """The request in a JSON file.

    Raises:
        BadRequestError: No such file, not JSON, or not a RunRequest; names file and field.
    """
    text = _text(file)
    try:
        return PlacedRequest(RunRequest.model_validate_json(text), file.parent)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or '(file)'}: {each['msg']}"
            for each in error.errors(include_url=False)
        )
        raise BadRequestError(f"{file}: not a RunRequest: {problems}") from error


def own_request(
    strategy_file: Path,
    *,
    data_folder: Path,
    output_folder: Path,
    symbols: Sequence[str] | None,
    job_uid: str,
) -> PlacedRequest:
    """The request of a person at a terminal, who needs no cluster; progress goes to a file.

    Raises:
        BadRequestError: No such strategy file, or the uid is none.
    """
    text = _text(strategy_file)
    try:
        request = RunRequest(
            job=JobIdentity(namespace="local", name=strategy_file.stem, uid=job_uid),
            attempt=1,
            strategy_file=strategy_file.name,
            strategy_digest=strategy_digest(text),
            overrides=Overrides(symbols=tuple(symbols) if symbols else None),
            data_folder=str(data_folder),
            output_folder=str(output_folder),
            reporting="file",
        )
    except ValidationError as error:
        raise BadRequestError(
            f"--job-uid {job_uid!r}: 1 to 64 letters, digits and hyphens are allowed"
        ) from error
    return PlacedRequest(request, strategy_file.parent)


def read_strategy(placed: PlacedRequest) -> StrategySource:
    """The strategy that the request names, if it is the text the request means.

    Raises:
        BadRequestError: Missing, or another text than the request's digest says.
        StrategyError: Not valid; one line for each problem.
    """
    request = placed.request
    file = placed.folder / request.strategy_file
    text = _text(file)
    if (found := strategy_digest(text)) != request.strategy_digest:
        raise BadRequestError(
            f"{file}: SHA-256 is {found}, the request says {request.strategy_digest}; the strategy "
            "was changed after the request was written: write a new request"
        )
    strategy = parse_strategy(text, source=file.name)
    wishes = request.overrides
    overridden = with_overrides(
        strategy,
        symbols=wishes.symbols,
        timeframes=wishes.timeframes,
        start=wishes.start_date,
        end=wishes.end_date,
    )
    return StrategySource(text, overridden)


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise BadRequestError(f"{file}: not UTF-8 text: {error}") from error
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise BadRequestError(f"{file}: {error.strerror}; check the path") from error
    except OSError as error:
        raise TemporaryError(f"{file}: {error.strerror}") from error
