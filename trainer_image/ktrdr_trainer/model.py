"""The network: a multi-layer perceptron over one flat parameter tensor.

`loop` trains it, `metrics` and `artifact` run it. Gradients are written out by hand with the very
operators autograd would call (a test compares them bit by bit): at batch 32 a step's forward and
backward take 80 us instead of 210 us, because nothing records a graph (measured on one core; see
docs/decisions/0008-explicit-gradients.md).

Shapes: B rows, F features, H units of a hidden layer, C = 3 classes, P parameters.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

CLASSES: Final = 3
"""0 buy, 1 hold, 2 sell."""

Masks = Sequence[Tensor]
"""A dropout mask (B,H) for each hidden layer, 0 or 1 / (1 - dropout); empty: no dropout."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of the network.

    Attributes:
        inputs: Number of features.
        hidden_layers: Units of each hidden layer.
        activation: After each hidden layer.
        dropout: Fraction of hidden units set to 0 in training, in [0, 1).
    """

    inputs: int
    hidden_layers: tuple[int, ...]
    activation: Literal["relu", "tanh", "gelu"] = "relu"
    dropout: float = 0.0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter by name, in the order of the flat tensor."""
        widths = (self.inputs, *self.hidden_layers, CLASSES)
        return {
            name: shape
            for layer, (before, after) in enumerate(pairwise(widths))
            for name, shape in (
                (f"layers.{layer}.weight", (after, before)),
                (f"layers.{layer}.bias", (after,)),
            )
        }

    @property
    def parameters_count(self) -> int:
        """P."""
        return sum(math.prod(shape) for shape in self.shapes.values())


class Activation(NamedTuple):
    """An activation and its derivative."""

    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Output, and what `backward` needs; may overwrite its argument."""
    backward: Callable[[Tensor, Tensor], Tensor]
    """Gradient before the activation from the one after it."""


def _relu(values: Tensor) -> tuple[Tensor, Tensor]:
    output = values.relu_()
    return output, output


def _relu_backward(gradient: Tensor, output: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.threshold_backward.default(gradient, output, 0)
    return result


def _tanh(values: Tensor) -> tuple[Tensor, Tensor]:
    output = values.tanh_()
    return output, output


def _gelu(values: Tensor) -> tuple[Tensor, Tensor]:
    return torch.nn.functional.gelu(values), values


_ACTIVATIONS: Final = {
    "relu": Activation(_relu, _relu_backward),
    "tanh": Activation(_tanh, torch.ops.aten.tanh_backward.default),
    "gelu": Activation(_gelu, torch.ops.aten.gelu_backward.default),
}


class _Layer(NamedTuple):
    """Views of one layer in the flat tensors."""

    weight: Tensor
    weight_transposed: Tensor
    bias: Tensor
    weight_gradient: Tensor
    bias_gradient: Tensor


class _Hidden(NamedTuple):
    """What the way back needs of a hidden layer."""

    saved: Tensor
    """For the activation's backward (B,H)."""
    output: Tensor
    """After dropout (B,H); the next layer's input."""


class Mlp:
    """A multi-layer perceptron; its layers are views of `parameters` and `gradient`.

    Attributes:
        config: Its shape.
        parameters: (P,) float32; whoever writes into it changes the network.
        gradient: (P,) float32; `backward` overwrites all of it.
    """

    def __init__(self, config: ModelConfig, parameters: Tensor) -> None:
        if parameters.shape != (config.parameters_count,):
            raise ValueError(
                f"{tuple(parameters.shape)} parameters do not fit {config}: "
                f"it has {config.parameters_count}"
            )
        self.config = config
        self.parameters = parameters
        self.gradient = torch.zeros_like(parameters)
        self._activation = _ACTIVATIONS[config.activation]
        self._hidden: list[_Hidden] = []
        values = list(named_views(config, parameters).values())
        slopes = list(named_views(config, self.gradient).values())
        self._layers = [
            _Layer(values[i], values[i].t(), values[i + 1], slopes[i], slopes[i + 1])
            for i in range(0, len(values), 2)
        ]

    def forward(self, features: Tensor, masks: Masks = ()) -> Tensor:
        """Logits (B,C) of features (B,F); remembers what `backward` needs."""
        hidden: list[_Hidden] = []
        output = features
        activate = self._activation.forward
        for index, layer in enumerate(self._layers[:-1]):
            output, saved = activate(torch.addmm(layer.bias, output, layer.weight_transposed))
            if masks:
                output = output * masks[index]
            hidden.append(_Hidden(saved, output))
        self._hidden = hidden
        last = self._layers[-1]
        return torch.addmm(last.bias, output, last.weight_transposed)

    def backward(self, slope: Tensor, features: Tensor, masks: Masks = ()) -> None:
        """Write the loss's gradient into `gradient`.

        Args:
            slope: (B,C) gradient of the loss with respect to the logits of the last `forward`.
            features: (B,F) as given to it.
            masks: As given to it.
        """
        hidden, layers = self._hidden, self._layers
        differentiate = self._activation.backward
        for index in range(len(layers) - 1, -1, -1):
            layer = layers[index]
            given = hidden[index - 1].output if index else features
            torch.mm(slope.t(), given, out=layer.weight_gradient)
            torch.sum(slope, 0, out=layer.bias_gradient)
            if index:
                slope = torch.mm(slope, layer.weight)
                if masks:
                    slope = slope.mul_(masks[index - 1])
                slope = differentiate(slope, hidden[index - 1].saved)


def initial_parameters(config: ModelConfig, seed: int) -> Tensor:
    """Fresh parameters (P,) on the CPU: uniform in +-1/sqrt(fan in), as torch.nn.Linear draws them.

    Drawn on the CPU whatever the device, so that a seed means the same start everywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    flat = torch.empty(config.parameters_count)
    fan_in = 1
    for view in named_views(config, flat).values():
        fan_in = view.shape[1] if view.dim() == 2 else fan_in
        bound = 1 / math.sqrt(fan_in)
        view.uniform_(-bound, bound, generator=generator)
    return flat


def named_views(config: ModelConfig, flat: Tensor) -> Mapping[str, Tensor]:
    """The parameters by name, as views of a flat tensor (P,)."""
    shapes = config.shapes
    parts = torch.split(flat, [math.prod(shape) for shape in shapes.values()])
    return {
        name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
