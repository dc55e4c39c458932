"""The trainer's loop against a plain DataLoader loop, in the same run: `make bench-loop`.

Both train the same network on the same rows with one thread: 500,000 rows of 64 features, layers
64-128-64-3, dropout 0.1, Adam. Ours is `ktrdr_trainer.loop.train` itself, with its accounting,
progress and stop token. The peer is what one would write first: TensorDataset, shuffling
DataLoader, torch.nn, torch.optim.Adam(fused=True). They take turns, and a ratio is the median of
the turns' ratios, so that a busy machine slows both.

The last columns are what progress and cancel cost beside a reader that looks once a second: the CPU
time of the reads, of a picture per chunk and of a flag read per batch, as a part of a second. It is
added up and not compared: a difference of 0.5 % drowns in the noise of a shared machine.

Exits 1 when a bar does not hold.
"""

import itertools
import statistics
import sys
import tempfile
import threading
import time
import timeit
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ktrdr_api.run_contract import Stage
from ktrdr_trainer.checkpoint import CheckpointStore
from ktrdr_trainer.dataset import ChunkPlan
from ktrdr_trainer.loop import LoopConfig, train
from ktrdr_trainer.model import ModelConfig
from ktrdr_trainer.slot import LoopProgress, ProgressSlot, system_clock
from ktrdr_trainer.stop import StopToken
from loop_builders import Rows, Splits, splits

ROWS: Final = 500_000
FEATURES: Final = 64
MODEL: Final = ModelConfig(FEATURES, (128, 64), "relu", 0.1)
LEARNING_RATE: Final = 1e-3
BARS: Final = {32: 2.5, 256: 3.0, 2048: 4.5}
OVERHEAD_BAR: Final = 0.005
TURNS: Final = 7
TURN_SECONDS: Final = 1.0


class Line(NamedTuple):
    batch_size: int
    trainer: float
    peer: float
    ratio: float


class TimedSlot(ProgressSlot):
    """Looks at the clock itself, at the first and the newest picture."""

    def __init__(self) -> None:
        super().__init__()
        self.times: tuple[float, float] | None = None

    def put(self, progress: LoopProgress, *, urgent: bool = False) -> None:
        if progress.step or self.times is None:
            now = time.perf_counter()
            self.times = (self.times[0] if self.times else now, now)
        super().put(progress, urgent=urgent)


def trainer_rate(data: Splits, batch_size: int) -> float:
    """Samples per second of our loop, for about a second; its start is not counted."""
    config = LoopConfig(
        MODEL, epochs=1000, batch_size=batch_size, learning_rate=LEARNING_RATE,
        checkpoint_on_cancel=False,
    )  # fmt: skip
    token, slot = StopToken(), TimedSlot()

    def read_then_stop() -> None:
        while slot.latest is None:
            time.sleep(0.01)
        time.sleep(TURN_SECONDS)
        repr(slot.latest)
        token.cancel("cancel")

    thread = threading.Thread(target=read_then_stop)
    thread.start()
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder), job_uid="bench", attempt=1, clock=system_clock())
        train(config, data, token=token, slot=slot, checkpoints=store, clock=system_clock())
    thread.join()
    if slot.latest is None or slot.times is None:
        raise RuntimeError("the loop left no progress")
    return slot.latest.step * batch_size / (slot.times[1] - slot.times[0])


def dataloader_loop(part: Rows, batch_size: int) -> Iterator[int]:
    """Trains on and on; yields the rows of each batch."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise((FEATURES, *MODEL.hidden_layers)):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(MODEL.dropout)]
    network = nn.Sequential(*layers, nn.Linear(MODEL.hidden_layers[-1], 3))
    adam = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([0.9, 1.0, 1.1]))
    dataset = TensorDataset(torch.from_numpy(part.features), torch.from_numpy(part.labels))
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True)
    loss_sum = torch.zeros(())
    while True:
        for features, labels in loader:
            adam.zero_grad()
            loss = criterion(network(features), labels)
            loss.backward()
            adam.step()
            loss_sum += loss.detach()
            yield len(labels)


def peer_rate(batches: Iterator[int]) -> float:
    """Samples per second of the peer, for about a second."""
    rows, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < TURN_SECONDS:
        rows += next(batches)
    return rows / seconds


def compare(data: Splits, batch_size: int) -> Line:
    """Medians of both rates and of the ratio; who goes first alternates."""
    batches = dataloader_loop(data.train, batch_size)
    next(batches)  # the peer's start is not counted either
    pairs = []
    for turn in range(TURNS):
        before = peer_rate(batches) if turn % 2 else 0.0
        ours = trainer_rate(data, batch_size)
        pairs.append((ours, before or peer_rate(batches)))
    trainer, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    return Line(batch_size, trainer, peer, ratio)


def overhead(batch_size: int, samples_per_second: float) -> float:
    """Part of a second that progress and cancel take, at the rate that was measured."""
    slot, token, count = ProgressSlot(), StopToken(), 20_000
    metrics = {"train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5}

    def picture() -> None:
        slot.put(LoopProgress(Stage.TRAINING, 1, 2, 3, 4, 5, 6.0, dict(metrics)))

    def flag() -> bool:
        return token.is_cancelled

    puts, flags, reads = (
        timeit.timeit(work, number=count, timer=time.process_time) / count
        for work in (picture, flag, lambda: repr(slot.latest))
    )
    batches = samples_per_second / batch_size
    per_chunk = ChunkPlan(ROWS, batch_size).batches_per_chunk
    return batches / per_chunk * puts + batches * flags + reads


def main() -> int:
    torch.set_num_threads(1)
    data = splits(ROWS, 1000, 1000, features=FEATURES)
    print(
        f"{'batch':>6} {'trainer/s':>12} {'DataLoader/s':>13} {'ratio':>6} {'bar':>5} "
        f"{'progress+cancel':>16} {'bar':>5}"
    )
    failed = []
    for batch_size, bar in BARS.items():
        line = compare(data, batch_size)
        cost = overhead(batch_size, line.trainer)
        holds = line.ratio >= bar and cost <= OVERHEAD_BAR
        failed += [] if holds else [str(batch_size)]
        print(
            f"{batch_size:>6} {line.trainer:>12,.0f} {line.peer:>13,.0f} {line.ratio:>6.2f} "
            f"{bar:>5.1f} {cost:>16.3%} {OVERHEAD_BAR:>5.1%} {'ok' if holds else 'SHORT'}",
            flush=True,
        )
    verdict = f"short at batch {', '.join(failed)}" if failed else "every bar holds"
    print(f"bench-loop: {verdict} (medians of {TURNS} turns, 1 thread)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
