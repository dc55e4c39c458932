"""The innermost loop: a chunk of optimizer steps, on the CPU or as one replayed CUDA graph.

`loop` asks for a chunk and gets its losses back; everything that is not a step is there. Both
devices run the same step; what differs is where dropout masks come from (numpy on the CPU, the
graph-safe generator on a GPU) and how often Python speaks (each batch, each chunk).
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ktrdr_trainer.dataset import ChunkBuffers, ChunkPlan, DropoutMasks, Rows, derived_seed
from ktrdr_trainer.model import Masks, Mlp
from ktrdr_trainer.objective import CrossEntropy, FlatAdam
from ktrdr_trainer.stop import StopToken


class Learner(NamedTuple):
    """What a step moves."""

    model: Mlp
    objective: CrossEntropy
    optimizer: FlatAdam

    def step(self, features: Tensor, labels: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """One optimizer step on (B,F) features and (B,) labels; loss () and logits (B,C)."""
        logits = self.model.forward(features, masks)
        loss, slope = self.objective(logits, labels)
        self.model.backward(slope, features, masks)
        self.optimizer.step()
        return loss, logits


class ChunkRun(NamedTuple):
    """A chunk on its way; `result` waits for it."""

    sizes: Sequence[int]
    """Rows of each batch that ran."""
    losses: Tensor
    """(batches,) on the CPU, once `done`."""
    correct: Tensor
    """() rows whose class was right, on the CPU, once `done`."""
    done: torch.cuda.Event | None = None

    def result(self) -> tuple[list[float], int]:
        """Loss of each batch, and rows that were right; blocks until the device got there."""
        if self.done is not None:
            self.done.synchronize()
        losses: list[float] = self.losses.tolist()
        return losses, int(self.correct)


class Steps(Protocol):
    """Runs chunks.

    Attributes:
        run_ahead: Chunks that may be on their way; bounds how late a stop is seen.
    """

    run_ahead: int

    def run(
        self, order: Tensor, *, epoch: int, chunk: int, first_batch: int, token: StopToken
    ) -> ChunkRun:
        """Run a chunk's batches from `first_batch` of the chunk on, or up to a stop.

        Args:
            order: The epoch's permutation (n,).
            epoch: From 1.
            chunk: From 0.
            first_batch: Of the chunk, from 0: a resumed run skips what was done.
            token: Read before every batch (CPU), before every chunk (GPU).
        """


def steps_for(rows: Rows, plan: ChunkPlan, learner: Learner, *, seed: int) -> Steps:
    """The steps for the device the rows are on."""
    kind = CudaSteps if rows.features.is_cuda else CpuSteps
    return kind(rows, plan, learner, seed=seed)


class CpuSteps:
    """Steps one by one; a stop is seen before the next batch."""

    run_ahead = 0

    def __init__(self, rows: Rows, plan: ChunkPlan, learner: Learner, *, seed: int) -> None:
        config = learner.model.config
        self._plan, self._learner, self._seed = plan, learner, seed
        self._buffers = ChunkBuffers(rows, plan)
        self._dropout = DropoutMasks(plan.chunk_rows, config.hidden_layers, config.dropout)

    def run(
        self, order: Tensor, *, epoch: int, chunk: int, first_batch: int, token: StopToken
    ) -> ChunkRun:
        """As `Steps.run`."""
        first, end = self._plan.bounds(chunk)
        self._buffers.gather(order[first:end])
        self._dropout.draw(self._seed, epoch=epoch, chunk=chunk)
        losses: list[Tensor] = []
        logits: list[Tensor] = []
        step = self._learner.step
        for features, labels, masks in self._batches(end - first)[first_batch:]:
            if token.is_cancelled:
                break
            loss, scores = step(features, labels, masks)
            losses.append(loss)
            logits.append(scores)
        if not losses:
            return ChunkRun((), torch.empty(0), torch.zeros(()))
        start = first_batch * self._plan.batch_size
        predicted = torch.cat(logits).argmax(1)
        labels = self._buffers.labels[start : start + predicted.shape[0]]
        sizes = [scores.shape[0] for scores in logits]
        return ChunkRun(sizes, torch.stack(losses), (predicted == labels).sum())

    def _batches(self, rows: int) -> list[tuple[Tensor, Tensor, Masks]]:
        size, buffers = self._plan.batch_size, self._buffers
        features = torch.split(buffers.features[:rows], size)
        labels = torch.split(buffers.labels[:rows], size)
        layers = [torch.split(mask[:rows], size) for mask in self._dropout.masks]
        masks: list[Masks] = list(zip(*layers, strict=True)) or [()] * len(labels)
        return list(zip(features, labels, masks, strict=True))


class CudaSteps:
    """A whole chunk as one CUDA graph; a shorter last chunk runs the same steps without it.

    The generator is seeded before each chunk, so masks depend on (seed, epoch, chunk) only. A stop
    is seen between chunks, at most two of which are on their way.
    """

    run_ahead = 1

    def __init__(self, rows: Rows, plan: ChunkPlan, learner: Learner, *, seed: int) -> None:
        self._plan, self._learner, self._seed = plan, learner, seed
        self._buffers = ChunkBuffers(rows, plan)
        self._whole_rows = plan.batches_per_chunk * plan.batch_size
        self._captured: tuple[torch.cuda.CUDAGraph, Tensor, Tensor] | None = None
        if rows.labels.shape[0] >= self._whole_rows:
            self._capture(rows)

    def run(
        self, order: Tensor, *, epoch: int, chunk: int, first_batch: int, token: StopToken
    ) -> ChunkRun:
        """As `Steps.run`; a chunk runs to its end or not at all.

        Only a run that began on a CPU can hand over a `first_batch` inside a chunk; it goes on,
        but not bit by bit as it would have there.
        """
        if token.is_cancelled:
            return ChunkRun((), torch.empty(0), torch.zeros(()))
        first, end = self._plan.bounds(chunk)
        self._buffers.gather(order[first:end])
        torch.cuda.manual_seed(derived_seed(self._seed, epoch, chunk))
        start = first_batch * self._plan.batch_size
        if self._captured and end - first - start == self._whole_rows:
            graph, losses, correct = self._captured
            graph.replay()
        else:
            losses, correct = self._steps(start, end - first)
        size = self._plan.batch_size
        sizes = [min(size, end - first - row) for row in range(start, end - first, size)]
        return _to_host(sizes, losses, correct)

    def _steps(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        size, buffers = self._plan.batch_size, self._buffers
        losses, correct = [], []
        parts = (
            torch.split(buffers.features[start:end], size),
            torch.split(buffers.labels[start:end], size),
        )
        for features, labels in zip(*parts, strict=True):
            loss, logits = self._learner.step(features, labels, self._masks(features))
            losses.append(loss)
            correct.append((logits.argmax(1) == labels).sum())
        return torch.stack(losses), torch.stack(correct).sum()

    def _masks(self, features: Tensor) -> list[Tensor]:
        config = self._learner.model.config
        if not config.dropout:
            return []
        kept = 1 - config.dropout
        return [
            features.new_empty(features.shape[0], width).bernoulli_(kept).div_(kept)
            for width in config.hidden_layers
        ]

    def _capture(self, rows: Rows) -> None:
        """Record a whole chunk, then undo what the rehearsal before it did to the state.

        Libraries initialize on first use, which a capture forbids: hence the rehearsal, on a side
        stream as torch.cuda.graph asks for. The capture itself computes nothing.
        """
        optimizer = self._learner.optimizer
        state = (self._learner.model.parameters, optimizer.first_moment, optimizer.second_moment)
        before, steps = [tensor.clone() for tensor in state], optimizer.steps
        self._buffers.gather(torch.arange(self._whole_rows, device=rows.labels.device))
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._steps(0, self._plan.batch_size)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            losses, correct = self._steps(0, self._whole_rows)
        self._captured = (graph, losses, correct)
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        optimizer.restore(steps=steps)


def _to_host(sizes: Sequence[int], losses: Tensor, correct: Tensor) -> ChunkRun:
    """Start the copy to pinned memory; the event tells when it is there."""
    host_losses = torch.empty(losses.shape, pin_memory=True)
    host_correct = torch.empty(correct.shape, dtype=correct.dtype, pin_memory=True)
    host_losses.copy_(losses, non_blocking=True)
    host_correct.copy_(correct, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()
    return ChunkRun(sizes, host_losses, host_correct, done)
