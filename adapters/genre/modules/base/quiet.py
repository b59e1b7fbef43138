"""Silence for the libraries below: their bars, notices and deprecations stay off the user's terminal."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress bars, notices and deprecations of the libraries below from the user's terminal."""
    from transformers.utils import logging as hf_logging

    level, disabled = hf_logging.get_verbosity(), logging.root.manager.disable
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        hf_logging.set_verbosity(level)
        hf_logging.enable_progress_bar()
