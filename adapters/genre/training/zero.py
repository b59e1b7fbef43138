"""DeepSpeed's ZeRO-1 and ZeRO-2: gradients and optimizer state spread over processes, the model whole in each of them.

Owns: what of a DeepSpeed launch is taken and what is refused, its engine around the parameters that train. Ignores: the frozen
base, which the engine never sees; which rows a process has.

    accelerate launch --config_file recipes/accelerate/deepspeed.yaml -m genre train recipes/like.yaml

A process's gradients stay its own until its last piece; then one reduction, parameter by parameter in a fixed order, leaves
each process with the sum for its part. So processes may have different numbers of pieces, and tasks that others have not. The
engine has each parameter in one dimension, since it does not take those that have none, in the memory that the model reads.
ZeRO: Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054.
"""

import math
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from genre.distributed import Ranks
from genre.errors import InputError, RecipeError
from genre.recipe import TrainConfig
from genre.training.updates import adamw

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter."""

BUCKET = 500_000_000
"""Most numbers that are exchanged at once, as DeepSpeed has it; it sets aside so much memory, so never more than there are."""

FIXED = (
    ("MIXED_PRECISION", "mixed_precision", ("no",), "what trains, trains in float32"),
    ("DEEPSPEED_CONFIG_FILE", "deepspeed_config_file", ("none",), "say zero_stage in accelerate's configuration"),
    ("DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "offload_optimizer_device", ("none",), "state stays on the device that it belongs to"),
    ("DEEPSPEED_OFFLOAD_PARAM_DEVICE", "offload_param_device", ("none",), "weights stay on the device that they belong to"),
    ("GRADIENT_ACCUMULATION_STEPS", "gradient_accumulation_steps", ("1", "auto"), "set train.accumulate in the recipe"),
    ("GRADIENT_CLIPPING", "gradient_clipping", ("auto", "none"), "set train.clip in the recipe"),
)
"""accelerate's variables, the keys of its configuration behind them, what they may be (first: where unset), what to do else."""


def zero_asked() -> bool:
    """Whether accelerate was launched for DeepSpeed; asks the environment only."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def check_zero(processes: int) -> None:
    """Check that a DeepSpeed launch is one that trains here.

    Raises:
        InputError: Another stage, a setting that has no place here, one process only, or DeepSpeed is not installed.
    """
    stage = _told("DEEPSPEED_ZERO_STAGE", "2")
    if stage not in ("1", "2"):
        raise InputError(
            "genre trains under DeepSpeed with gradients and optimizer spread", got=f"zero_stage {stage}",
            expected="zero_stage 1 or 2",
            todo="recipes/accelerate/fsdp2.yaml spreads the base, as stage 3 does; ddp_gpu.yaml spreads nothing, as stage 0 does",
        )  # fmt: skip
    for variable, key, allowed, todo in FIXED:
        if (told := _told(variable, allowed[0])) not in allowed:
            expected = f"{allowed[0]}, or no such key"
            raise InputError(f"genre does not take DeepSpeed's {key}", got=told, expected=expected, todo=todo)
    if processes < 2:
        raise InputError(
            "DeepSpeed spreads over processes", got="one process", expected="two or more: --num_processes",
            todo="train without a launcher",
        )  # fmt: skip
    if find_spec("deepspeed") is None:
        raise InputError("DeepSpeed is not installed", todo="pip install 'genre-adapters[deepspeed]'")


class Zero:
    """Steps of one optimizer whose state, and whose summed gradients, are spread over the processes.

    Args:
        ranks: The processes.
        parameters: What trains, alike in each process; their values move into DeepSpeed's buffer, and are mutated by `step`.
        train: Learning rate, weight decay and the bound of the gradient's norm.

    Attributes:
        engine: DeepSpeed's, around the same values in one dimension each; no graph goes through it.
        optimizer: Its own, around AdamW on this process's part.
        spoken: What is spread, in a line.

    Raises:
        RecipeError: A parameter is not float32.
    """

    def __init__(self, ranks: Ranks, parameters: Sequence[nn.Parameter], train: TrainConfig) -> None:
        other = {str(value.dtype) for value in parameters} - {"torch.float32"}
        if other:
            raise RecipeError("DeepSpeed trains float32 here", got=", ".join(sorted(other)), todo="use plain data parallel")
        self.ranks, self.parameters, total = ranks, parameters, sum(value.numel() for value in parameters)
        self.groups = adamw(parameters, train).state_dict()["param_groups"]
        self.flat = [nn.Parameter(value.detach().reshape(-1)) for value in parameters]
        stage, most = int(_told("DEEPSPEED_ZERO_STAGE", "2")), min(total, BUCKET)
        with redirect_stdout(sys.stderr):  # it prints what it builds
            import deepspeed

            self.engine, self.optimizer, *_ = deepspeed.initialize(
                model=_Values(self.flat), optimizer=adamw(self.flat, train), dist_init_required=False, config={
                    "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1,  # counts nothing: rows are dealt here
                    "gradient_clipping": train.clip, "steps_per_print": math.inf, "zero_allow_untested_optimizer": True,
                    "zero_optimization": {"stage": stage, "reduce_bucket_size": most, "allgather_bucket_size": most},
                })  # fmt: skip
        for value, flat in zip(self.parameters, self.flat, strict=True):
            value.data = flat.data.view_as(value)  # the same memory from here on
        mine = sum(value.numel() for group in self.optimizer.optimizer.param_groups for value in group["params"])
        self.spoken = f"ZeRO-{stage}: a process holds the optimizer's state of {mine:,} of {total:,} trained numbers"

    def backward(self, loss: Tensor) -> None:
        """Add a piece's gradient to what the step has so far."""
        loss.backward()

    def add_up(self, told: Tensor) -> Tensor:
        """Add up the gradients of all processes, each keeping its part, and (k,) float32 further numbers; these, on the CPU."""
        with self.engine.coalesce_grad_reduction():  # at its end one exchange, in the parameters' order
            for value, flat in zip(self.parameters, self.flat, strict=True):
                own = torch.zeros_like(value) if value.grad is None else value.grad
                flat.grad, value.grad = own.reshape(-1) * self.ranks.count, None  # the exchange takes the mean
        told = told.to(self.parameters[0].device)
        self.ranks.sum_(told)
        return told.cpu()

    def clip(self) -> float:
        """The gradient's norm, infinite if the gradient is not finite; `step` bounds it by `train.clip`."""
        return float(self.optimizer.scaled_global_norm())

    def step(self, rate: float) -> None:
        """Change the weights, each process its part, hand them round, and forget the gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step()

    def forget(self) -> None:
        """Forget the gradients."""
        for value in self.parameters:
            value.grad = None

    def state(self) -> dict[str, Any]:
        """The state dict that AdamW would have in one process, put together from all of them: an exchange."""
        from deepspeed.utils import safe_get_full_optimizer_state

        found: dict[int, dict[str, Tensor]] = {}
        for own in self.optimizer.state.values():  # one: the part of this process; none before the first step
            for place, (value, flat) in enumerate(zip(self.parameters, self.flat, strict=True)):
                moments = {name: safe_get_full_optimizer_state(flat, name).view_as(value) for name in MOMENTS}
                found[place] = {"step": own["step"].detach().clone().cpu(), **moments}
        return {"state": found, "param_groups": self.groups}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state dict of `state`, or of one process, and from the parameters' present values."""
        self.optimizer.refresh_fp32_params()
        if not state["state"]:
            return
        from deepspeed.utils import safe_set_full_optimizer_state

        self.add_up(torch.zeros(1))
        self.step(0.0)  # of length zero, so that there is a state to write into
        for place, flat in enumerate(self.flat):
            for name in MOMENTS:
                held = state["state"].get(place, {}).get(name)  # none in one process for what never had a gradient
                safe_set_full_optimizer_state(flat, torch.zeros_like(flat) if held is None else held.to(flat), name)
        taken = max(float(each["step"]) for each in state["state"].values())
        for own in self.optimizer.state.values():
            own["step"].fill_(taken)


class _Values(nn.Module):
    """All that the engine knows of the model."""

    def __init__(self, values: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.values = nn.ParameterList(values)


def _told(variable: str, unset: str) -> str:
    return os.environ.get(f"ACCELERATE_{variable}", unset).lower()
