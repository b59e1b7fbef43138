#!/usr/bin/env bash
# obp 0.4.1 (the source of 0.5.7 does the same), 2026-11-30
# Guess: a policy that never chooses what was logged cannot be valued by replay: an error or NaN, as SNIPW of the same package gives.
# Seen: the value is 0.0 and its 95 % interval [0, 0], as if the policy had been seen to earn nothing. A stochastic policy (all
# probabilities below 1), which replay cannot match either, gets the same answer although its action_dist passes the checks.
# Matters: in a table of candidate policies an unevaluable one looks like the surest and worst; with rewards that are costs, the best.
# Count the matching rounds first.
#
# Output:
#   obp 0.4.1 mean logged reward 0.87
#   deterministic, never the logged action: replay 0.0 in [0.0, 0.0], SNIPW nan
#   stochastic: replay 0.0 in [0.0, 0.0], SNIPW 0.897
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 pandas==3.1.1 scikit-learn==1.9.1 scipy==1.17.1 torch==2.13.0 pyyaml seaborn matplotlib tqdm \
  mypy_extensions
"$work/venv/bin/pip" install --quiet --no-deps obp==0.4.1
"$work/venv/bin/python" -W ignore - <<'PY'
import numpy
import obp
from obp.ope import ReplayMethod, SelfNormalizedInverseProbabilityWeighting

rng = numpy.random.default_rng(0)
rounds, actions = 200, 4
action = rng.integers(0, actions, rounds)
reward = rng.binomial(1, 0.9, rounds)
other = numpy.eye(actions)[(action + 1) % actions][:, :, None]
soft = numpy.full((rounds, actions, 1), 0.05)
soft[:, 0] = 0.85
print("obp", obp.__version__, "mean logged reward", reward.mean())
for name, policy in (("deterministic, never the logged action", other), ("stochastic", soft)):
    log = {"reward": reward, "action": action, "action_dist": policy, "position": numpy.zeros(rounds, int)}
    value = ReplayMethod().estimate_policy_value(**log)
    interval = ReplayMethod().estimate_interval(**log, random_state=0)
    weighted = SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(pscore=numpy.full(rounds, 1 / actions), **log)
    ends = [float(interval["95.0% CI (lower)"]), float(interval["95.0% CI (upper)"])]
    print(f"{name}: replay {float(value)} in {ends}, SNIPW {float(weighted):.3f}")
    assert value == 0.0 and ends == [0.0, 0.0] and not weighted == 0.0
PY
