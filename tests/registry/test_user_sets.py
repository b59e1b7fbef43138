"""Keyed sets of users: everybody who is in is found, hardly anybody else, and nothing without the key."""

import json

import pytest

from genre.data.user_key import UserKey
from genre.errors import IntegrityError
from genre.registry.users import LEAST_BITS, MOST_BITS, UserSet


def test_users_are_found_and_others_are_not():
    key, users = UserKey(bytes(32)), [f"u{i}" for i in range(3000)]
    made = UserSet.of(users, key)
    assert all(made.find(map(key.digest, users)))
    assert sum(made.find(key.digest(f"other {i}") for i in range(20_000))) <= 2
    assert 0 < made.false_positives < 2e-5 and made.bits == 72_000 and made.hashes == 17
    other = UserKey(bytes(31) + b"1")
    assert sum(made.find(other.digest(user) for user in users)) <= 2, "another key finds nobody"
    assert UserSet.of(reversed(users), key) == made and UserSet.of([], key).bits == LEAST_BITS
    assert not any(UserSet.of([], key).find([key.digest("u1")]))


@pytest.mark.parametrize(("users", "share"), [(2_500, 0.018), (25_000, 0.70)])  # a million and ten million with the real bound
def test_the_size_is_bounded_and_mistakes_are_stated(monkeypatch, users, share):
    key = UserKey(bytes(32))
    assert MOST_BITS / 8 * 4 / 3 < 1.5 * 2**20
    monkeypatch.setattr("genre.registry.users.MOST_BITS", MOST_BITS // 400)
    made = UserSet.of((str(i) for i in range(users)), key)
    assert made.bits == -(-(MOST_BITS // 400) // 8) * 8
    mistakes = sum(made.find(key.digest(f"other {i}") for i in range(2000))) / 2000
    assert made.false_positives == pytest.approx(share, abs=0.01 if share > 0.5 else 0.002)
    assert mistakes == pytest.approx(share, abs=0.04 if share > 0.5 else 0.012)


def test_a_file_of_something_else_is_refused():
    raw = UserSet.of(["1"], UserKey(bytes(32))).model_dump()
    assert UserSet.parse(json.dumps(raw).encode()).find([UserKey(bytes(32)).digest("1")]) == [True]
    for change in ({"bits": 1024}, {"hashes": 99}, {"filter": "%"}, {"key": "short"}, {"more": 1}, {"bits": 2**40}):
        with pytest.raises(IntegrityError, match=r"users.json is damaged"):
            UserSet.parse(json.dumps(raw | change).encode())
    with pytest.raises(IntegrityError):
        UserSet.parse(b"[")
