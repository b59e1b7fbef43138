#!/usr/bin/env bash
# obp 0.4.1 (the source of 0.5.7, which asks for Python below 3.11, does the same), 2026-11-30
# Guess: the bootstrap interval of the self-normalized estimator (SNIPW) resamples rounds and normalizes each resample by its own weights.
# Seen: the sum of weights of the whole log is put into the rounds' values first, and those are resampled, so that the interval
# is that of IPW: with reward 1 in every round the estimate is 1.0 exactly, and the interval .95 to 1.05, beyond any value that a click
# rate can take. With a reward rate of .9 it is 2.6 times as wide as the estimator's own.
# Matters: SNIPW is chosen for its smaller variance; comparisons of policies with this interval do not see it.
# Resample (weight, reward) pairs yourself. (st-tech/zr-obp#187 noticed the variance.)
#
# Output:
#   obp 0.4.1
#   reward 1 everywhere: (width, upper end) SNIPW (0.107, 1.054), IPW (0.107, 1.055); width with each resample normalized 0.0
#   reward rate .9: (width, upper end) SNIPW (0.113, 0.976), IPW (0.113, 0.977); width with each resample normalized 0.043
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
from obp.ope import InverseProbabilityWeighting, SelfNormalizedInverseProbabilityWeighting

rng = numpy.random.default_rng(0)
rounds, actions = 1000, 5
action = rng.integers(0, actions, rounds)
policy = rng.dirichlet(numpy.ones(actions), rounds)
log = {"action": action, "pscore": numpy.full(rounds, 1 / actions), "action_dist": policy[:, :, None], "position": numpy.zeros(rounds, int)}
weight = policy[numpy.arange(rounds), action] * actions


def width(interval):
    low, high = interval["95.0% CI (lower)"], interval["95.0% CI (upper)"]
    return round(float(high - low), 3), round(float(high), 3)


print("obp", obp.__version__)
for name, reward in (("reward 1 everywhere", numpy.ones(rounds)), ("reward rate .9", rng.binomial(1, 0.9, rounds).astype(float))):
    options = {"reward": reward, **log, "n_bootstrap_samples": 1000, "random_state": 0}
    normalized = width(SelfNormalizedInverseProbabilityWeighting().estimate_interval(**options))
    plain = width(InverseProbabilityWeighting().estimate_interval(**options))
    samples = [rng.integers(0, rounds, rounds) for _ in range(1000)]
    own = numpy.percentile([numpy.average(reward[rows], weights=weight[rows]) for rows in samples], [2.5, 97.5])
    own_width = round(float(own[1] - own[0]), 3)
    print(f"{name}: (width, upper end) SNIPW {normalized}, IPW {plain}; width with each resample normalized {own_width}")
    assert abs(normalized[0] - plain[0]) < 0.01 and normalized[0] > 1.3 * own_width
    assert reward.min() < 1 or (normalized[1] > 1.04 and own_width == 0)
PY
