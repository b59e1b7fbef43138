#!/usr/bin/env bash
# recbole 1.2.1 (also RUCAIBox/RecBole#2204), 2026-11-30
# Guess: order TO with a leave-one-out split tests each user's latest event.
# Seen: a float column, which the atomic format prescribes for timestamps, is narrowed to 32 bits before the sort. Unix seconds since 2004
# are then multiples of 128 (64 before), and events of one user within two minutes keep the order of the file.
# The user below has three events 20 seconds apart; with the file newest first the test event is the middle one, in the order
# of time it is the latest. Both are read without a warning.
# Matters: sessions are minutes long, so histories hold their future, and published leave-one-out figures depend on the order of the file.
# Write seconds since the first event, or sort the file by user and time.
#
# Output:
#   recbole 1.2.1 events 0, 1, 2 of each user at [1700000010, 1700000030, 1700000050]
#   file order [0, 1, 2] test items ['item2', 'item2', 'item2', 'item2'] their times [1700000000, 1700001024, 1700002048, 1700003072]
#   file order [2, 0, 1] test items ['item1', 'item1', 'item1', 'item1'] their times [1700000000, 1700001024, 1700002048, 1700003072]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==1.26.4 pandas==2.3.3 scipy==1.17.1 scikit-learn==1.7.2 tqdm pyyaml colorlog \
  colorama texttable psutil tensorboard==2.21.0 tabulate thop
"$work/venv/bin/pip" install --quiet --no-deps recbole==1.2.1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import pathlib
from importlib.metadata import version

from recbole.config import Config
from recbole.data import create_dataset

start = 1_700_000_010  # Unix seconds


def latest(order):
    folder = pathlib.Path("data/log")
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"user{user}\titem{event}\t{start + 1000 * user + 20 * event}" for user in range(4) for event in order]
    (folder / "log.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]) + "\n")
    options = {
        "data_path": "data",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {"order": "TO", "split": {"LS": "valid_and_test"}, "mode": "full", "group_by": "user"},
    }
    dataset = create_dataset(Config(model="Pop", dataset="log", config_dict=options))
    test = dataset.build()[2].inter_feat
    return dataset.id2token("item_id", test["item_id"].numpy()).tolist(), test["timestamp"].long().tolist()


print("recbole", version("recbole"), "events 0, 1, 2 of each user at", [start + 20 * event for event in range(3)])
for order, expected in (([0, 1, 2], "item2"), ([2, 0, 1], "item1")):
    items, times = latest(order)
    print("file order", order, "test items", items, "their times", times)
    assert items == [expected] * 4 and times[0] == 1_700_000_000
PY
