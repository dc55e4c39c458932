"""The hand-written step against autograd, torch.nn and torch.optim."""

from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight  # type: ignore[import-untyped]
from torch import Tensor, nn

from ktrdr_api.errors import DataError, StrategyError
from ktrdr_trainer.model import Mlp, ModelConfig, initial_parameters, named_views
from ktrdr_trainer.objective import CrossEntropy, FlatAdam, class_weights, require_finite
from ktrdr_trainer.steps import Learner
from loop_builders import FEATURES, rows

ActivationName = Literal["relu", "tanh", "gelu"]
_MODULES = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
_WEIGHTS = torch.tensor([0.5, 1.0, 1.7])
_LAST_DIGIT = 1e-6
"""BLAS sums in an order that depends on where a matrix begins, and ours are views."""


class Reference(nn.Module):
    """The same network out of torch's own parts, with dropout masks given."""

    def __init__(self, config: ModelConfig, parameters: Tensor) -> None:
        super().__init__()
        widths = (config.inputs, *config.hidden_layers, 3)
        self.linear = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.activation = _MODULES[config.activation]()
        with torch.no_grad():
            for name, value in named_views(config, parameters).items():
                self.get_parameter(name.replace("layers", "linear")).copy_(value)

    def forward(self, features: Tensor, masks: list[Tensor]) -> Tensor:
        for index, layer in enumerate(list(self.linear)[:-1]):
            features = self.activation(layer(features))
            if masks:
                features = features * masks[index]
        logits: Tensor = self.linear[-1](features)
        return logits

    def flat(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters()])


def _config(activation: ActivationName = "relu") -> ModelConfig:
    return ModelConfig(FEATURES, (8, 6), activation, 0.25)


def _batch(size: int = 20) -> tuple[Tensor, Tensor, list[Tensor]]:
    part = rows(size)
    generator = torch.Generator().manual_seed(3)
    masks = [
        torch.bernoulli(torch.full((size, width), 0.75), generator=generator) / 0.75
        for width in (8, 6)
    ]
    return torch.from_numpy(part.features), torch.from_numpy(part.labels), masks


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("with_dropout", [True, False])
def test_backward_on_a_batch_equals_autograd(
    activation: ActivationName, with_dropout: bool
) -> None:
    config = _config(activation)
    parameters = initial_parameters(config, 1)
    features, labels, masks = _batch()
    masks = masks if with_dropout else []
    reference = Reference(config, parameters)
    want = nn.CrossEntropyLoss(weight=_WEIGHTS)(reference(features, masks), labels)
    want.backward()

    model = Mlp(config, parameters)
    loss, slope = CrossEntropy(_WEIGHTS)(model.forward(features, masks), labels)
    model.backward(slope, features, masks)

    assert loss.item() == want.item()
    gradients = [p.grad.flatten() for p in reference.parameters() if p.grad is not None]
    torch.testing.assert_close(model.gradient, torch.cat(gradients), rtol=_LAST_DIGIT, atol=1e-8)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_step_ten_times_equals_fused_torch_adam(clip: float | None, weight_decay: float) -> None:
    config = _config()
    parameters = initial_parameters(config, 1)
    reference = Reference(config, parameters)
    adam = torch.optim.Adam(reference.parameters(), lr=0.01, weight_decay=weight_decay, fused=True)
    criterion = nn.CrossEntropyLoss(weight=_WEIGHTS)
    model = Mlp(config, parameters)
    learner = Learner(
        model,
        CrossEntropy(_WEIGHTS),
        FlatAdam(
            parameters, model.gradient, learning_rate=0.01, weight_decay=weight_decay, clip=clip
        ),
    )
    features, labels, masks = _batch()
    for _ in range(10):
        learner.step(features, labels, masks)
        adam.zero_grad()
        criterion(reference(features, masks), labels).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(reference.parameters(), clip)
        adam.step()
    torch.testing.assert_close(model.parameters, reference.flat(), rtol=1e-5, atol=1e-6)


def test_adam_on_given_gradients_is_bit_equal_to_fused_torch_adam() -> None:
    generator = torch.Generator().manual_seed(2)
    parameters, gradient = torch.randn(1000, generator=generator), torch.zeros(1000)
    reference = nn.Parameter(parameters.clone())
    theirs = torch.optim.Adam([reference], lr=0.01, weight_decay=0.1, fused=True)
    ours = FlatAdam(parameters, gradient, learning_rate=0.01, weight_decay=0.1, clip=None)
    for _ in range(20):
        gradient.copy_(torch.randn(1000, generator=generator))
        reference.grad = gradient.clone()
        ours.step()
        theirs.step()
    assert torch.equal(parameters, reference.detach())


def test_initial_parameters_of_a_layer_are_uniform_as_in_torch_linear() -> None:
    config = ModelConfig(400, (300,))
    views = named_views(config, initial_parameters(config, 5))
    bound = 1 / 400**0.5
    weight = views["layers.0.weight"]
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert views["layers.0.bias"].abs().max() <= bound
    assert not torch.equal(initial_parameters(config, 5), initial_parameters(config, 6))


def test_class_weights_of_counts_equal_scikit_learn() -> None:
    labels = np.repeat([0, 1, 2], [50, 120, 7])
    want = compute_class_weight("balanced", classes=np.array([0, 1, 2]), y=labels)
    assert class_weights(np.bincount(labels)).numpy() == pytest.approx(want)


def test_class_weights_without_a_class_leave_it_out() -> None:
    assert class_weights(np.array([30, 0, 10])).tolist() == pytest.approx([40 / 60, 0, 2.0])


def test_class_weights_of_one_class_name_the_remedy() -> None:
    with pytest.raises(DataError, match=r"0, 9, 0.*smaller zigzag_threshold"):
        class_weights(np.array([0, 9, 0]))


def test_parameters_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Mlp(_config(), torch.zeros(4))


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_loss_that_is_no_number_names_epoch_batch_and_remedy(loss: float) -> None:
    with pytest.raises(StrategyError, match=r"epoch 3, batch 7.*lower learning_rate"):
        require_finite(loss, epoch=3, batch=7)
