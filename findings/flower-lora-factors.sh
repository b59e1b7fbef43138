#!/usr/bin/env bash
# flwr 1.42.0, 2026-11-30
# Guess: averaging the LoRA tensors of clients that hold the same update gives that update.
# Seen: FedAvg averages every array for itself, and B A = (B R)(R^-1 A) for any R: factors of one update are many. Two clients with equal
# updates of opposite signs in both factors average to no update at all; ones that differ by a rotation keep part of it. A
# strategy does not know which arrays are factors of one another. (Clients of unequal rank fail in numpy.)
# Matters: recipes for federated LoRA send the adapter's state dict as it is. It works while all clients start from one B = 0 and make few
# steps; afterwards the mean of products, factored again by SVD, or one frozen factor is needed.
#
# Output:
#   flwr 1.42.0 strength of the average of two clients with the same update B A
#   same factors: 1.0
#   factors rotated: 0.521
#   both signs turned: 0.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet flwr==1.42.0 numpy==2.4.6
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import FedAvg

rng = numpy.random.default_rng(0)
b, a = rng.normal(size=(16, 4)), rng.normal(size=(4, 16))
rotation = numpy.linalg.qr(rng.normal(size=(4, 4)))[0]


def averaged(*clients):
    results = [(None, FitRes(Status(Code.OK, ""), ndarrays_to_parameters(list(arrays)), 100, {})) for arrays in clients]
    parameters, _ = FedAvg(fit_metrics_aggregation_fn=lambda metrics: {}).aggregate_fit(1, results, [])
    up, down = parameters_to_ndarrays(parameters)
    return round(float(numpy.linalg.norm(up @ down) / numpy.linalg.norm(b @ a)), 3)


print("flwr", version("flwr"), "strength of the average of two clients with the same update B A")
strengths = {
    "same factors": averaged((b, a), (b, a)),
    "factors rotated": averaged((b, a), (b @ rotation, rotation.T @ a)),
    "both signs turned": averaged((b, a), (-b, -a)),
}
for name, strength in strengths.items():
    print(f"{name}: {strength}")
assert strengths["same factors"] == 1.0
assert strengths["factors rotated"] < 0.9
assert strengths["both signs turned"] == 0.0
PY
