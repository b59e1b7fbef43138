#!/usr/bin/env bash
# flwr 1.42.0, 2026-11-30
# Guess: under SecAgg+ the server learns sums alone: "a weighting factor and a weighted version of the parameters, both masked for privacy".
# Seen: beside the masked weight, every answer carries the client's number of examples and its metrics as they are; a strategy, and whoever
# reads the SuperLink's messages, has them by client. Only the arrays are taken out of the answer.
# Matters: a client's loss or accuracy on its own data, and how much data it has, are what secure aggregation was asked to hide. Send no
# metrics from fit, and a weight that may be known.
#
# Output:
#   flwr 1.42.0 what the server has of three clients after a SecAgg+ round
#   arrays of a client: the same for all, the mean
#   num_examples by node: {2: 17, 3: 400, 4: 900}
#   metrics by node: {2: {'loss': 2.5}, 3: {'loss': 0.25}, 4: {'loss': 0.5}}
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
    def __init__(self, examples, loss):
        self.examples, self.loss = examples, loss

    def fit(self, parameters, config):
        return [numpy.full(4, self.loss)], self.examples, {"loss": self.loss}


def client_app(examples, loss):
    return ClientApp(client_fn=lambda context: Client(examples, loss).to_client(), mods=[secaggplus_mod])


class Grid:
    def __init__(self, clients):
        self.nodes = {}
        for node, (examples, loss) in clients.items():
            self.nodes[node] = client_app(examples, loss), context(node)

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
        self.arrays = [parameters_to_ndarrays(answer.parameters)[0] for _, answer in results]
        self.examples = {node.node_id: answer.num_examples for node, answer in results}
        self.metrics = {node.node_id: answer.metrics for node, answer in results}
        return None, {}


strategy = Strategy()
legacy = LegacyContext(context(1), strategy=strategy, client_manager=SimpleNamespace(num_available=lambda: 3))
legacy.state.config_records["config"] = ConfigRecord({"current_round": 1})
legacy.state.array_records["parameters"] = ArrayRecord()
SecAggPlusWorkflow(3, 2)(Grid({2: (17, 2.5), 3: (400, 0.25), 4: (900, 0.5)}), legacy)
same = all(numpy.array_equal(each, strategy.arrays[0]) for each in strategy.arrays)
print("flwr", version("flwr"), "what the server has of three clients after a SecAgg+ round")
print("arrays of a client:", "the same for all, the mean" if same else "its own")
print("num_examples by node:", dict(sorted(strategy.examples.items())))
print("metrics by node:", dict(sorted(strategy.metrics.items())))
assert same and strategy.examples == {2: 17, 3: 400, 4: 900}
assert {node: own["loss"] for node, own in strategy.metrics.items()} == {2: 2.5, 3: 0.25, 4: 0.5}
PY
