"""The same identities on a CUDA device; skipped where there is none."""

from pathlib import Path

import pytest

from builders import LIKE, NEXT, recipe

pytestmark = pytest.mark.gpu


@pytest.fixture
def cuda():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_training_and_engine_agree(cuda, tmp_path: Path, quantization: str) -> None:
    """For users with no more events than a row takes, so that both read the same ones."""
    import genre
    from fakes import make_base, planted_log
    from genre.engine.versions import read_adapter
    from genre.jobs.loading import restore
    from genre.training.prediction import predict

    folder, log = make_base(tmp_path / "base", width=64), planted_log(users=20, items=12, events=12)
    base = genre.Base.load(str(folder), quantization=quantization)
    assert base.device.type == "cuda" and str(base.dtype) == "torch.bfloat16"
    registry = genre.Registry(tmp_path / "registry")
    for task in (NEXT, LIKE):
        wanted = recipe(folder, task, base={"name": str(folder), "quantization": quantization})
        run = genre.train(wanted, log=log, base=base, registry=registry, folder=tmp_path / task["name"])
        registry.publish(run)
    loaded = read_adapter(registry, "like", base)
    model, builder, split = restore(loaded, log, base)
    targets, scores, _ = predict(model, builder, split, 2, max_events=64, batch_tokens=4096)["like"]
    model.release()
    with genre.Engine(base, registry, data=log) as engine:
        for event, score in list(zip(targets.event, scores, strict=True))[:20]:
            user = log.user_ids[log.user_codes[event]]
            start = int(log.user_offsets[log.user_codes[event]])
            history = log.history(user)[: event - start][-15:]
            item = log.catalogue.item_ids[log.item_codes[event]]
            people = log.users.row(log.user_code(user), named=True)
            request = genre.Request("like", history=history, candidates=[item], user=people)
            answer = engine.score([request])[0]
            assert answer.error is None
            assert abs(answer.results[0].score - score) < 0.05  # bfloat16, and int8 activations


def test_fused_gradients_on_cuda(cuda) -> None:
    import torch

    from genre.modules.lora.layer import LoraLinear

    torch.manual_seed(0)
    layer = LoraLinear(torch.nn.Linear(64, 96, device=cuda).requires_grad_(False), rank=4, scale=2.0)
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(8, 32, 64, device=cuda, requires_grad=True)
    layer(x).square().sum().backward()
    fused = [x.grad.clone(), layer.lora_A.grad.clone(), layer.lora_B.grad.clone()]
    x.grad = layer.lora_A.grad = layer.lora_B.grad = None
    layer.fused = False
    layer(x).square().sum().backward()
    for a, b in zip(fused, [x.grad, layer.lora_A.grad, layer.lora_B.grad], strict=True):
        assert torch.allclose(a, b, rtol=1e-2, atol=1e-2 * float(b.abs().max()))
