"""Where a run's curves go beside its own log: TensorBoard or Weights & Biases, through accelerate.

Owns: which trackers there are, where their files lie, what is said when one cannot start. Ignores: what is tracked.

    tensorboard   RUN/tracker/                  tensorboard --logdir runs
    wandb         RUN/wandb/, and the service   WANDB_MODE=offline keeps it on this machine
    none
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from genre.errors import JobError, RecipeError
from genre.recipe import Recipe


def need_tracker(name: str) -> str | None:
    """What accelerate calls a recipe's tracker; None for `none`.

    Raises:
        RecipeError: Its package is not installed.
    """
    if name == "none":
        return None
    if find_spec(name) is None:
        raise RecipeError(
            f"train.tracker {name} needs a package that is not installed", got=f"no {name}",
            expected=f"pip install {name}", todo="install it, or set train.tracker to tensorboard or none",
        )  # fmt: skip
    return name


def start_tracker(accelerator: Any, recipe: Recipe, folder: Path) -> None:
    """Start what the accelerator logs with, its files in the run folder, the flattened recipe as its configuration.

    Raises:
        JobError: It cannot start, for want of a login say.
    """
    name = recipe.train.tracker
    if name == "none":
        return
    project = {"tensorboard": "tracker", "wandb": "genre"}[name]
    options = {"wandb": {"name": f"{recipe.name}/{folder.name}", "dir": str(folder), "settings": {"silent": True}}}
    try:
        accelerator.init_trackers(project, config=_flat(recipe.model_dump(mode="json")), init_kwargs=options)
    except Exception as error:  # each tracker has its own tree
        raise JobError(
            f"the tracker {name} cannot start", got=(str(error).strip() or repr(error)).splitlines()[0][:200],
            todo="log in, or keep it on this machine with WANDB_MODE=offline" if name == "wandb" else "set train.tracker: none",
        ) from None  # fmt: skip


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested values as `a.b`, as texts and numbers: what every tracker takes."""
    if isinstance(value, dict):
        return {key: inner for name, each in value.items() for key, inner in _flat(each, f"{path}.{name}").items()}
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        return {key: inner for place, each in enumerate(value) for key, inner in _flat(each, f"{path}.{place}").items()}
    return {path.lstrip("."): value if isinstance(value, bool | int | float | str) else str(value)}
