"""One optimiser out of two: Muon for the weight matrices, AdamW for everything else.

In short trainings Muon is worth several dB over AdamW (docs/experiments.md). Muon takes matrices only; a convolution is
one of (out, in * k * k), so it is handed a flat view that shares the weight's memory.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from neuralloader.training.muon import StackedMuon
from neuralloader.training.recipes import Recipe


class MatrixOptimizer:
    """Steps a network by a recipe; ``step`` takes the share of the training that is done.

    Args:
        parameters: of the network, or with ``is_stack`` of a stack of them: each has a first axis that counts networks.
        recipe: how to train.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], recipe: Recipe, *, is_stack: bool = False):
        parameters, num_stacked = list(parameters), int(is_stack)
        matrix_rate = recipe.matrix_learning_rate
        matrices = [] if matrix_rate is None else [p for p in parameters if _is_matrix(p, num_stacked)]
        in_matrices = {id(p) for p in matrices}
        others = [p for p in parameters if id(p) not in in_matrices]
        self._recipe, self._first_flat = recipe, 1 + num_stacked
        self._views = [(p, nn.Parameter(p.data.flatten(self._first_flat))) for p in matrices]
        for weight, view in self._views:
            assert view.data_ptr() == weight.data_ptr(), "a flat view must share the weight's memory"
        adamw = torch.optim.AdamW(others, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=0)
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = [(adamw, recipe.learning_rate)]
        if matrix_rate is not None:
            views = [view for _, view in self._views]
            decay = recipe.matrix_weight_decay
            muon = StackedMuon(views, matrix_rate, decay) if is_stack else torch.optim.Muon(views, matrix_rate, decay)
            self._optimizers.append((muon, matrix_rate))
        self._prepare(others)

    def step(self, progress: float) -> None:
        """One step at the learning rates of ``progress`` (0 to 1), from the gradients of the parameters."""
        for weight, view in self._views:
            view.grad = None if weight.grad is None else weight.grad.flatten(self._first_flat)
        factor = self._recipe.rate_factor(progress)
        for optimizer, peak in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """All that later steps depend on besides the weights, by name: the very tensors, to be kept or written to."""
        return {
            f"{place}.{row}.{name}": value
            for place, (optimizer, _) in enumerate(self._optimizers)
            for row, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }

    def _prepare(self, others: Iterable[nn.Parameter]) -> None:
        """Have all of the state from the start; torch's optimisers make a parameter's part at its first step."""
        parameters = [*others, *(view for _, view in self._views)]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for optimizer, _ in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.0
            optimizer.step()
        for parameter in parameters:
            parameter.grad = None
        for tensor in self.state().values():
            tensor.zero_()


def _is_matrix(parameter: Tensor, num_stacked: int) -> bool:
    """Whether one network's parameter has two axes, or more, and is more than a row or a column."""
    shape = parameter.shape[num_stacked:]
    return len(shape) >= 2 and shape[0] > 1 and shape[1:].numel() > 1
