"""The trainer's command line: `python -m ktrdr_trainer`.

    --request FILE           run what a RunRequest asks (what the operator's pods do)
    train STRATEGY ...       write that request for yourself: no cluster needed
    validate FILE...         check strategies
    evaluate ARTIFACT ...    prove a stored model

From here the data go to `run` (or `evaluate`). Imports are late on purpose: signals are caught and
torch begins to load before anything else is imported.
"""

import argparse
import json
import os
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ktrdr_trainer import logs, runtime

if TYPE_CHECKING:
    from ktrdr_trainer.request import PlacedRequest

BAD_REQUEST = 2
"""`run_contract.ExitCode.BAD_REQUEST`, and argparse's own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    options = _parser().parse_args(arguments)
    if options.command is not None and options.request is not None:
        _parser().error(f"--request runs by itself, not beside {options.command}")
    if options.command == "validate":
        return _validate(options.files)
    if options.command == "evaluate":
        return _evaluate(options.artifact, options.data)
    if options.command is None and options.request is None:
        _parser().error("give --request FILE, or one of the commands")
    return _run(lambda: _wanted(options))


def _run(read: "Callable[[], PlacedRequest]") -> int:
    signals = runtime.catch_signals()
    wait_for_torch = runtime.import_in_thread("torch")
    from ktrdr_trainer.run import run

    return run(read, runtime.from_environment(), signals=signals, wait_for_torch=wait_for_torch)


def _wanted(options: argparse.Namespace) -> "PlacedRequest":
    from ktrdr_trainer import request

    if options.command is None:
        return request.read_request(options.request)
    job_uid = options.job_uid or str(uuid.uuid4())
    logs.LOGGER.info("To go on after a stop, repeat the command with --job-uid %s", job_uid)
    return request.own_request(
        options.strategy,
        data_folder=options.data,
        output_folder=options.output,
        symbols=options.symbols,
        job_uid=job_uid,
    )


def _validate(files: Sequence[Path]) -> int:
    from ktrdr_trainer.validate import problems_and_warnings

    code = 0
    for file in files:
        problems, warnings = problems_and_warnings(file)
        for text in (*problems, *warnings):
            logs.complain(text)
        if problems:
            code = BAD_REQUEST
        else:
            logs.output(f"{file}: valid")
    return code


def _evaluate(artifact: Path, data: Path) -> int:
    from ktrdr_api.errors import KtrdrError
    from ktrdr_trainer.evaluate import evaluate

    logs.set_up()
    try:
        report = evaluate(artifact, data)
    except KtrdrError as error:
        logs.complain(str(error))
        return error.exit_code
    logs.output(json.dumps(report, indent=2))
    return 0 if report["identical"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ktrdr_trainer", description="Train, check and prove trading models."
    )
    parser.add_argument("--request", type=Path, metavar="FILE", help="run this RunRequest (JSON)")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    train = commands.add_parser("train", help="train a strategy on this machine")
    train.add_argument("strategy", type=Path, metavar="STRATEGY", help="a strategy file")
    train.add_argument(
        "--data", type=Path, required=True, help="folder of {SYMBOL}_{timeframe}.csv"
    )
    train.add_argument("--output", type=Path, required=True, help="folder for models, checkpoints")
    train.add_argument("--symbols", nargs="+", help="instead of the strategy's")
    train.add_argument("--job-uid", help="resume the run with this uid; its log names it")
    validate = commands.add_parser("validate", help="check strategy files")
    validate.add_argument("files", type=Path, nargs="+", metavar="FILE")
    evaluate = commands.add_parser("evaluate", help="compute a stored model's test metrics again")
    evaluate.add_argument("artifact", type=Path, metavar="ARTIFACT", help="folder of the model")
    evaluate.add_argument("--data", type=Path, required=True, help="folder it was trained on")
    return parser


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # All is stored and said. Measured on 2 busy cores: unloading torch takes 1-2 s, in which a
    # cancelled process would still live.
    os._exit(code)
