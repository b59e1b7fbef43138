"""Silence for the libraries below: blocks in which their bars, notices and deprecations stay off the user's terminal."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A block that loads or saves with transformers and its relatives: no progress bars, nothing below an error."""
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    try:
        with _errors_only("accelerate", "bitsandbytes", "huggingface_hub", "peft", "transformers"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.enable_progress_bar()


@contextlib.contextmanager
def quiet_casts() -> Iterator[None]:
    """A block in which int8 linears do not report that they cast their inputs, which each of them does in every pass."""
    with _errors_only("bitsandbytes"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="MatMul8bitLt")
        yield


@contextlib.contextmanager
def _errors_only(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
