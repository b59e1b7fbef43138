"""Tests on the simulated accelerator: only in a process of their own, which `tests/test_accelerator.py` starts.

GENRE_SIMULATED=1 python -m pytest tests/accelerator
"""

import os
import sys
from pathlib import Path

import pytest

collect_ignore_glob: list[str] = []
if os.environ.get("GENRE_SIMULATED"):
    import torch

    import simulated

    torch.set_num_threads(1)
    simulated.register()
    sys.path.append(str(Path(__file__).parents[1] / "serving"))  # serving_fakes
else:
    collect_ignore_glob.append("test_*.py")


@pytest.fixture
def on_device(tiny: Path):
    """Loads the tiny base on the device, in float32 unless told."""
    from genre.modules.base.base import Base

    def load(device: str = "sim", **options):
        return Base.load(str(tiny), device=device, **{"dtype": torch.float32} | options)

    return load
