"""Checkpoints that are no checkpoints: one line, no traceback."""

import pytest
import torch

from genre.errors import InputError
from genre.training.checkpoints import PARTS, fitted_encoder, read_checkpoint, write_checkpoint

CPU = torch.device("cpu")


def kept(folder, payload):
    (folder / "checkpoints").mkdir(exist_ok=True)
    write_checkpoint(folder, payload)
    return folder


@pytest.mark.parametrize("payload", [{}, [], torch.zeros(3), {name: 1 for name in sorted(PARTS)[1:]}])
def test_a_checkpoint_without_its_parts_is_refused(tmp_path, payload):
    folder = kept(tmp_path, payload)
    for read in (lambda: read_checkpoint(folder, CPU), lambda: fitted_encoder(folder)):
        with pytest.raises(InputError, match=r"the checkpoint cannot be read: got .*last.pt without average; .* --resume"):
            read()


@pytest.mark.parametrize("data", [b"", b"PK", b"not a checkpoint"])
def test_a_file_that_torch_cannot_read_is_refused(tmp_path, data):
    kept(tmp_path, {})
    (tmp_path / "checkpoints" / "last.pt").write_bytes(data)
    with pytest.raises(InputError, match="the checkpoint cannot be read"):
        read_checkpoint(tmp_path, CPU)


def test_a_whole_one_comes_back(tmp_path):
    payload = dict.fromkeys(PARTS, 1)
    assert read_checkpoint(kept(tmp_path, payload), CPU) == payload
