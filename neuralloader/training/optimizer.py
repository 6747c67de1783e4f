"""One optimiser out of two: Muon for the weight matrices, AdamW for everything else.

In short trainings Muon is worth several dB over AdamW (docs/experiments.md). torch's Muon takes matrices only; a
convolution is one of (out, in * k * k), so it is handed a flat view that shares the weight's memory.
"""

from collections.abc import Iterable

import torch
from torch import nn

from neuralloader.training.recipes import Recipe


class MatrixOptimizer:
    """Steps a network by a recipe; ``step`` takes the share of the training that is done."""

    def __init__(self, parameters: Iterable[nn.Parameter], recipe: Recipe):
        parameters = list(parameters)
        matrix_rate = recipe.matrix_learning_rate
        matrices = [] if matrix_rate is None else [p for p in parameters if p.ndim >= 2 and min(p.flatten(1).shape) > 1]
        in_matrices = {id(p) for p in matrices}
        others = [p for p in parameters if id(p) not in in_matrices]
        self._recipe = recipe
        self._views = [(p, nn.Parameter(p.data.flatten(1))) for p in matrices]
        for weight, view in self._views:
            assert view.data_ptr() == weight.data_ptr(), "a flat view must share the weight's memory"
        adamw = torch.optim.AdamW(others, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=0)
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = [(adamw, recipe.learning_rate)]
        if matrix_rate is not None:
            muon = torch.optim.Muon([view for _, view in self._views], lr=matrix_rate, weight_decay=0)
            self._optimizers.append((muon, matrix_rate))

    def step(self, progress: float) -> None:
        """One step at the learning rates of ``progress`` (0 to 1), from the gradients of the parameters."""
        for weight, view in self._views:
            view.grad = None if weight.grad is None else weight.grad.flatten(1)
        factor = self._recipe.rate_factor(progress)
        for optimizer, peak in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
