#!/usr/bin/env bash
# flwr 1.42.0, 2026-11-30
# Guess: SecAgg+ gives the mean that plain FedAvg gives, whatever the clients' numbers of examples.
# Seen: an update is multiplied by examples / max_weight (1000 by default) and then cut to the clipping range (8) before it is masked. Three
# clients that all send the same 1.0 get it back with 1,000 examples each, and 0.64 with 12,500 each: the mean is no mean of theirs.
# The clients log a warning of a possible overflow, which it is not; the server logs that all went well.
# Matters: numbers of examples above 1000 are usual, and the model shrinks a little in every round. Set max_weight to the largest number.
#
# Output:
#   flwr 1.42.0 the SecAgg+ mean of three clients that all send 1.0
#   1,000 examples each: 1.0
#   8,000 examples each: 1.0
#   12,500 examples each: 0.64
#   12,500 examples each, max_weight 12500: 1.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet flwr==1.42.0 numpy==2.4.6
export FLWR_TELEMETRY_ENABLED=0
"$work/venv/bin/python" -W ignore - <<'PY'
import copy
import logging
from importlib.metadata import version
from types import SimpleNamespace

import numpy
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.client import ClientApp, NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.common import FitIns, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import LegacyContext
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.supercore.task_identity import TaskIdentity  # a SuperLink sets it; here all runs in one process

logging.getLogger("flwr").setLevel(logging.CRITICAL)
TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def context(node):
    return Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})


class Client(NumPyClient):
    def __init__(self, examples):
        self.examples = examples

    def fit(self, parameters, config):
        return [numpy.ones(4)], self.examples, {}


class Grid:
    def __init__(self, examples):
        client = ClientApp(client_fn=lambda context: Client(examples).to_client(), mods=[secaggplus_mod])
        self.nodes = {node: (client, context(node)) for node in (2, 3, 4)}

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for message in messages:
            message.content = copy.deepcopy(message.content)
            client, own = self.nodes[message.metadata.dst_node_id]
            replies.append(client(message, own))
        return replies


class Strategy:
    def configure_fit(self, server_round, parameters, client_manager):
        return [(SimpleNamespace(node_id=node), FitIns(ndarrays_to_parameters([numpy.zeros(4)]), {})) for node in (2, 3, 4)]

    def aggregate_fit(self, server_round, results, failures):
        self.mean = parameters_to_ndarrays(results[0][1].parameters)[0]
        return None, {}


def mean(examples, **options):
    strategy = Strategy()
    legacy = LegacyContext(context(1), strategy=strategy, client_manager=SimpleNamespace(num_available=lambda: 3))
    legacy.state.config_records["config"] = ConfigRecord({"current_round": 1})
    legacy.state.array_records["parameters"] = ArrayRecord()
    SecAggPlusWorkflow(3, 2, **options)(Grid(examples), legacy)
    return round(float(strategy.mean.mean()), 2)


print("flwr", version("flwr"), "the SecAgg+ mean of three clients that all send 1.0")
for examples in (1000, 8000, 12500):
    print(f"{examples:,} examples each: {mean(examples)}")
print(f"12,500 examples each, max_weight 12500: {mean(12500, max_weight=12500.0)}")
assert mean(1000) == mean(8000) == mean(12500, max_weight=12500.0) == 1.0
assert mean(12500) == 0.64
PY
