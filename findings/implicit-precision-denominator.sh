#!/usr/bin/env bash
# implicit 0.7.3, 2026-11-30
# Guess: precision_at_k is hits / k, so with one held-out item per user precision@10 is at most .1.
# Seen: hits are summed over users and divided by the sum of min(k, the user's held-out items). With one held-out item it equals the hit
# rate, with all items in the list it is 1.0, and a user with many held-out items weighs more than one with few; it can grow with k.
# Matters: "precision@10" from implicit is compared with that of other libraries, which divide by k and average over users.
#
# Output:
#   implicit 0.7.3
#   one held-out item, last of six: precision@1, 3, 6 = [0.0, 0.0, 1.0]
#   misses for a user with 1 item, hits for one with 3: precision@3 = 0.75 where the mean over users is .5
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 scipy==1.17.1 implicit==0.7.3
OMP_NUM_THREADS=1 "$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import numpy
from implicit.evaluation import precision_at_k
from scipy.sparse import csr_matrix


class Fixed:
    """Lists given beforehand, the same for every model of implicit's interface."""

    def __init__(self, lists):
        self.lists = numpy.array(lists, dtype=numpy.int32)

    def recommend(self, users, rows, N=10, **options):
        return self.lists[users][:, :N], numpy.ones((len(users), N), dtype=numpy.float32)


def precision(lists, held_out, k):
    held_out = csr_matrix(numpy.array(held_out, dtype=numpy.float32))
    return precision_at_k(Fixed(lists), csr_matrix(held_out.shape, dtype=numpy.float32), held_out, K=k, show_progress=False)


print("implicit", version("implicit"))
last = [[5, 4, 3, 2, 1, 0]]  # the one held-out item, 0, comes last of six
print("one held-out item, last of six: precision@1, 3, 6 =", one := [precision(last, [[1, 0, 0, 0, 0, 0]], k) for k in (1, 3, 6)])
two_users = [[1, 2, 3, 4, 5, 0], [5, 4, 3, 2, 1, 0]]
both = precision(two_users, [[1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]], 3)
print("misses for a user with 1 item, hits for one with 3: precision@3 =", both, "where the mean over users is .5")
assert one == [0.0, 0.0, 1.0]
assert both == 0.75
PY
