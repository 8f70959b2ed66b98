"""Muon for the matrices of the blocks and AdamW for the rest, with a moving average of weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz iteration (Muon, Keller Jordan 2024)."""
ITERATIONS = 5
UPDATE_RMS = 0.2
"""RMS of an update divided by its learning rate, the same as AdamW's (Moonlight, arXiv 2502.16982).
"""
AVERAGED_SHARE, LAST_AVERAGE = 0.1, 0.999
"""The average spans the last tenth of the steps so far, and at most about 1,000."""


class Optimizer:
    """Updates a module's parameters, and keeps their exponential moving average.

    torch.optim.Muon takes one matrix at a time, in bfloat16, which has no fast units on most CPUs:
    here all matrices of one shape are orthogonalized together, in fp32.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        muon_rate: float,
        adam_rate: float,
        is_matrix: Callable[[str, Tensor], bool] | None = None,
    ) -> None:
        chosen = is_matrix or is_block_matrix
        self.module = module
        self.rates = (muon_rate, adam_rate)
        named = dict(module.named_parameters())
        self.matrices: dict[torch.Size, list[nn.Parameter]] = {}
        rest = []
        for name, parameter in named.items():
            if chosen(name, parameter):
                self.matrices.setdefault(parameter.shape, []).append(parameter)
            else:
                rest.append(parameter)
        self.momenta = {
            shape: torch.zeros(len(group), *shape, device=group[0].device)
            for shape, group in self.matrices.items()
        }
        self.adam = torch.optim.AdamW(
            rest, lr=adam_rate, betas=(0.9, 0.99), weight_decay=0.0, foreach=True
        )
        self.average = {name: tensor.detach().clone() for name, tensor in named.items()}

    def step(self, index: int, scale: float, clip: float = 1.0) -> float:
        """Apply the gradients at `scale` times the learning rates; return their norm."""
        parameters = list(self.module.parameters())
        norm = nn.utils.clip_grad_norm_(parameters, clip)
        muon_rate, adam_rate = (rate * scale for rate in self.rates)
        for shape, group in self.matrices.items():
            self._step_matrices(group, self.momenta[shape], muon_rate)
        for settings in self.adam.param_groups:
            settings["lr"] = adam_rate
        self.adam.step()
        self.module.zero_grad(set_to_none=True)
        self._average(average_decay(index))
        return float(norm)

    @torch.no_grad()
    def _step_matrices(self, group: list[nn.Parameter], momentum: Tensor, rate: float) -> None:
        gradients = torch.stack(
            [torch.zeros_like(item) if item.grad is None else item.grad for item in group]
        )
        momentum.lerp_(gradients, 0.05)
        updates = orthogonalized(gradients.lerp(momentum, 0.95).flatten(2))
        factor = UPDATE_RMS * max(updates.shape[1:]) ** 0.5 * rate
        torch._foreach_add_(list(group), list(updates.view_as(gradients).unbind()), alpha=-factor)

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        own = [tensor.detach() for _, tensor in self.module.named_parameters()]
        torch._foreach_lerp_(list(self.average.values()), own, 1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that a resumed run needs, the weights included."""
        state = {f"weight.{name}": item for name, item in self.module.state_dict().items()}
        state |= {f"average.{name}": item for name, item in self.average.items()}
        state |= {f"momentum.{i}": item for i, item in enumerate(self.momenta.values())}
        for index, slots in self.adam.state_dict()["state"].items():
            state |= {f"adam.{index}.{slot}": item for slot, item in slots.items()}
        return state

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore the result of `tensors`."""
        device = next(self.module.parameters()).device
        self.module.load_state_dict(part(tensors, "weight"))
        for name, item in part(tensors, "average").items():
            self.average[name].copy_(item)
        for index, momentum in enumerate(self.momenta.values()):
            momentum.copy_(tensors[f"momentum.{index}"])
        state = self.adam.state_dict()
        state["state"] = {}
        for key, item in part(tensors, "adam").items():
            number, _, slot = key.partition(".")
            state["state"].setdefault(int(number), {})[slot] = (
                item if slot == "step" else item.to(device)
            )
        self.adam.load_state_dict(state)


def average_decay(index: int) -> float:
    """Return the share of the old average that step `index` keeps."""
    return min(LAST_AVERAGE, max(0.0, 1 - 1 / (AVERAGED_SHARE * (index + 1))))


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Return whether a parameter is a weight inside the transformer's blocks."""
    return parameter.ndim == 2 and "blocks." in name


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors below `prefix`, without it."""
    start = f"{prefix}."
    return {key[len(start) :]: item for key, item in tensors.items() if key.startswith(start)}


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return the nearest semi-orthogonal matrices, roughly: (count, rows, cols)."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        product = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(product, product, product, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x


def rate_scale(index: int, steps: int, warm_up: int) -> float:
    """Return the share of the learning rate: warm-up, constant to 55 %, then linear to 3 %."""
    hold = 0.55 * steps
    falling = 1 - 0.97 * max(0.0, index - hold) / max(1.0, steps - hold)
    return min(1.0, (index + 1) / warm_up) * falling
