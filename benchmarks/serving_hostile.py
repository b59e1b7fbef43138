"""Hostile calls, one per number, and the audit of what a process opens.

Owns: malformed bodies (no JSON, or another shape), hostile calls, heavy calls by kind, the audit hook, what counts as foreign.
Ignores: sending.
"""

import json
import random
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

REFS = (
    "../../etc/passwd",
    "/etc/passwd",
    "like@../../x",
    "file:///etc/passwd",
    "s3://bucket/like",
    "like:" + "0" * 12,
    "like\x00",
    "%2e%2e/like",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**53,
    2**70,
    10**400,
    1e308,
    0.5,
    "",
    "\x00",
    "../../etc/passwd",
    "{0.__class__}",
    "%s%n",
    "a" * 5000,
    [],
    {},
    [[]],
    {"a": {"b": {}}},
    "\U0001f600",
    "'; DROP TABLE items; --",
    {"__proto__": 1},
    ["i1"] * 50,
    *REFS,
)
FIELDS = (
    "adapter",
    "history",
    "candidates",
    "k",
    "task",
    "user_id",
    "user",
    "exclude_seen",
    "allow",
    "deny",
    "id",
    "item",
    "method",
)
PATHS = ("/v1/score", "/v1/recommend", "/v1/explain", "/v1/admin/load", "/v1/admin/promote")
LOOKS = (
    "/v1/items?q=%00",
    "/v1/items?limit=99999999999999999999",
    "/v1/users?q=../../etc",
    "/v1/history?user_id=../../etc/passwd",
    "/../../../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/..%2f..%2fetc%2fpasswd",
    "/page/../app.py",
    "//etc/passwd",
    "/v1/adapters/../../x",
)


def malformed(number: int, good: bytes) -> bytes:
    """A body that must get a 4xx as a whole."""
    rng = random.Random(number)
    ways = (
        good[: rng.randrange(1, len(good) - 1)],
        b"",
        b"\xff" + good,
        good + b"}",
        b"[" * 5000,
        b'{"requests": 5}',
        b'{"requests": []}',
        b"[]",
        b'{"requests": [NaN]}',
        b'{"rows": []}',
        b'{"requests": [1], "x": 1}',
        b'{"requests": [' + b"9" * 400 + b"]}",
    )
    return ways[number % len(ways)]


def hostile_call(number: int, rows: list[dict[str, Any]]) -> bytes:
    """The bytes of a whole call, each number another one; always framed so that it ends."""
    rng = random.Random(number)
    kind = number % 8
    if kind == 0:
        return _post(rng, rng.randbytes(rng.randrange(0, 2000)))
    if kind == 1:
        return _post(rng, malformed(rng.randrange(1000), json.dumps({"requests": [rng.choice(rows)]}).encode()))
    if kind == 2:
        return f"GET {rng.choice(LOOKS)} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    if kind == 3:
        host = rng.choice(("evil.example", "", "127.0.0.1:x", "[::1", "a" * 500))
        return f"GET /v1/adapters HTTP/1.1\r\nHost: {host}\r\nX-Request-ID: {rng.choice(REFS[:3])}\r\n\r\n".encode()
    if kind == 4:
        wrong = rng.choice(
            (b"GET\r\n\r\n", b"POST /v1/score HTTP/9.9\r\n\r\n", b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/1.1\r\nA\r\n\r\n")
        )
        return wrong if rng.random() < 0.5 else b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n"
    return _post(rng, _rows(rng, rows))


def _post(rng: random.Random, body: bytes) -> bytes:
    named = f"Host: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"POST {rng.choice(PATHS)} HTTP/1.1\r\n{named}\r\n\r\n".encode() + body


def _rows(rng: random.Random, rows: list[dict[str, Any]]) -> bytes:
    """Good rows with odd values in some of their fields."""
    made = []
    for _ in range(rng.randrange(1, 4)):
        row: dict[str, Any] = json.loads(json.dumps(rng.choice(rows)))
        for field in rng.sample(FIELDS, rng.randrange(1, 4)):
            row[field] = rng.choice(REFS) if field == "adapter" else rng.choice(VALUES)
        if isinstance(row.get("history"), list) and rng.random() < 0.5:
            row["history"] = [*row["history"], {rng.choice(("item_id", "item", "rating", "impression_id")): rng.choice(VALUES)}]
        made.append(row)
    return json.dumps({"requests": made}).encode()


Asked = tuple[str, list[dict[str, Any]]]
"""A path, and the rows that are sent there."""
HUGE = "huge"
"""The name of a version whose scores are not finite."""


def heavy_call(number: int, users: list[str], items: list[str]) -> tuple[str, bytes]:
    """The kind of a heavy call and its bytes: each number another call, the kinds in turn.

    Args:
        number: Of the call.
        users: Ids of the data set.
        items: Ids of the catalogue.
    """
    rng = random.Random(number)
    kind = list(HEAVY)[number % len(HEAVY)]
    made = HEAVY[kind](rng, users, items)
    if isinstance(made, bytes):
        return kind, made
    path, rows = made
    return kind, head(path, json.dumps({"requests": rows}).encode())


def head(path: str, body: bytes, *, method: str = "POST", kind: str = "application/json", more: str = "") -> bytes:
    """A whole call, with further header lines."""
    named = f"Host: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}"
    return f"{method} {path} HTTP/1.1\r\n{named}\r\n".encode() + body


def _like(**more: Any) -> dict[str, Any]:
    return {"adapter": "like@production", **more}


def _next(**more: Any) -> dict[str, Any]:
    return {"adapter": "next_item@production", **more}


def _titles(rng: random.Random, count: int, length: int) -> list[dict[str, str]]:
    words = ["".join(rng.choices("abcdefghij", k=7)) for _ in range(50)]
    return [{"title": " ".join(rng.choices(words, k=max(1, length // 8)))} for _ in range(count)]


def _cheap_rows(rng: random.Random, users: list[str], items: list[str]) -> Asked:
    return "/v1/score", [_like(user_id=rng.choice(users), candidates=rng.sample(items, 2)) for _ in range(256)]


def _many_results(rng: random.Random, users: list[str], items: list[str]) -> Asked:
    path = rng.choice(["/v1/score", "/v1/recommend"])
    return path, [_next(user_id=rng.choice(users), candidates=rng.choices(items, k=900), k=900) for _ in range(256)]


def _whole_catalogue(rng: random.Random, users: list[str], items: list[str]) -> Asked:
    return "/v1/score", [_like(user_id=rng.choice(users), k=rng.choice([10, 10**6])) for _ in range(8)]


def _new_titles(rng: random.Random, users: list[str], items: list[str]) -> Asked:
    count, length = rng.choice([(1000, 30), (400, 120), (60, 8000), (7, 8000)])
    return "/v1/score", [_like(user_id=rng.choice(users), candidates=_titles(rng, count, length))]


def _titles_in_history(rng: random.Random, users: list[str], items: list[str]) -> Asked:
    row = [{"item": title, "rating": 4} for title in _titles(rng, 200, 40)]
    return "/v1/score", [_like(history=row, candidates=items[:5])]


def _long_history(rng: random.Random, users: list[str], items: list[str]) -> Asked:
    events = [{"item_id": rng.choice(items), "rating": 3} for _ in range(40_000)]
    return "/v1/score", [rng.choice([_like(candidates=items[:5]), _next(k=10)]) | {"history": events}]


def _large_k(rng: random.Random, users: list[str], items: list[str]) -> Asked:
    values = [2**53, 10**9, 10**6, 0, -1, 1.5, True, "10", [10]]
    return rng.choice(["/v1/score", "/v1/recommend"]), [_next(user_id=rng.choice(users), k=k) for k in values for _ in range(8)]


def _lists(rng: random.Random, users: list[str], items: list[str]) -> Asked:
    many = [f"{rng.choice(items)}{'x' * (number % 2)}" for number in range(100_000)]
    fields: list[dict[str, object]] = [
        {"candidates": many},
        {"k": 10, "deny": many},
        {"k": 10, "allow": many},
        {"candidates": rng.choices(items, k=99_000)},
    ]
    return "/v1/score", [_next(user_id=rng.choice(users)) | rng.choice(fields) for _ in range(3)]


def _conditions(rng: random.Random, users: list[str], items: list[str]) -> Asked:
    def rows() -> list[str]:
        return [f"title != '{rng.random()}'" for _ in range(30)] + ["year within 1e9 days of 2024-01-01", "nothing == 1"][
            : rng.randrange(3)
        ]

    return "/v1/score", [_next(user_id=rng.choice(users), k=10, where=rows()) for _ in range(32)]


def _diverse(rng: random.Random, users: list[str], items: list[str]) -> Asked:
    return "/v1/score", [_next(user_id=rng.choice(users), k=1000, diversity=0.5) for _ in range(24)]


def _columns(rng: random.Random, users: list[str], items: list[str]) -> Asked:
    user = {f"c{number}": "x" * rng.choice([10, 8000]) for number in range(rng.choice([1, 30, 3000]))}
    return "/v1/score", [_like(history=[], candidates=items[:2], user=user)]


def _long_names(rng: random.Random, users: list[str], items: list[str]) -> Asked:
    text = "\u202e<script>" + "y" * 8000
    return "/v1/score", [{rng.choice(["adapter", "id", "task", "user_id"]): text, "k": 3, "adapter": "like"} for _ in range(256)]


def _explained(rng: random.Random, users: list[str], items: list[str]) -> Asked:
    methods = ["leave_one_out", "gradient", "", None, 5]
    rows = [_like(user_id=rng.choice(users), item=rng.choice(items), method=rng.choice(methods)) for _ in range(4)]
    return "/v1/explain", rows


def _not_finite(rng: random.Random, users: list[str], items: list[str]) -> Asked:
    path = rng.choice(["/v1/score", "/v1/recommend", "/v1/explain"])
    rows = [{"adapter": f"{HUGE}@production", "user_id": rng.choice(users)} for _ in range(8)]
    more: dict[str, Any] = {"item": items[0]} if path == "/v1/explain" else {"k": 5}
    return path, [row | more for row in [*rows, _like(user_id=rng.choice(users))]]


def _much_json(rng: random.Random, users: list[str], items: list[str]) -> bytes:
    ways: list[Callable[[], bytes]] = [
        lambda: b'{"requests": [' + b",".join([b"null"] * 500_000) + b"]}",
        lambda: b'{"requests": [' + b"[" * 150 + b"]" * 150 + b"]}",
        lambda: b"[" * 3_000_000,
        lambda: b'{"requests": [{' + b",".join(b'"%d": 0' % number for number in range(200_000)) + b"}]}",
        lambda: b'{"requests": [{"adapter": "like", "history": [' + b"{}," * 900_000 + b"{}]}]}",
        lambda: b'{"requests": [' + b",".join([b"1e308"] * 255) + b", " + b"9" * 3_000_000 + b"]}",
        lambda: b'{"requests": ["' + b"\\ud800" * 1000 + b'"]}',
        lambda: rng.randbytes(3_000_000),
        lambda: b" " * 5_000_000,
        lambda: b'{"requests": ["' + b"\\u0041" * 600_000 + b'"]}',
    ]
    return head(rng.choice(PATHS), rng.choice(ways)())


def _wrong_types(rng: random.Random, users: list[str], items: list[str]) -> bytes:
    types = [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "",
        "x" * 500,
    ]
    return head(rng.choice(PATHS), b'{"requests": []}' * rng.choice([1, 200_000]), kind=rng.choice(types))


def _across_sites(rng: random.Random, users: list[str], items: list[str]) -> bytes:
    path = f"/v1/admin/{rng.choice(['load', 'unload', 'promote', 'rollback', 'canary', 'none'])}"
    secret = rng.choice(["", "Bearer", "Bearer wrong", "Basic YTpi", "Bearer \u00ff", "Bearer " + "z" * 9000])
    more = "Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\n" + (f"Authorization: {secret}\r\n" if secret else "")
    kind = rng.choice(["text/plain", "application/json", "application/x-www-form-urlencoded"])
    body = rng.choice([b'{"ref": "like@production"}', b"ref=like%40production", b'{"name": "like", "share": 1e999}'])
    return head(path, body, method=rng.choice(["POST", "POST", "PUT", "OPTIONS"]), kind=kind, more=more)


def _looked_up(rng: random.Random, users: list[str], items: list[str]) -> bytes:
    text = rng.choice(["a", "%00", "%F0%9F%98%80", "x" * 199, "x" * 5000, ""])
    paths = [
        f"/v1/items?q={text}&limit=1000",
        f"/v1/users?q={text}&limit=1000",
        "/v1/users?sample=true&limit=1000",
        f"/v1/history?user_id={rng.choice(users)}&limit=1000",
        "/v1/adapters",
        "/metrics",
        "/openapi.json",
        rng.choice(LOOKS),
    ]
    return head(rng.choice(paths), b"", method="GET")


def _odd_rows(rng: random.Random, users: list[str], items: list[str]) -> bytes:
    rows = [_like(user_id=users[0], candidates=items[:3]), _next(history=[], k=3)]
    return hostile_call(rng.randrange(10**6), rows)


def _texts(rng: random.Random, users: list[str], items: list[str]) -> Asked:
    many = [{"title": "a" * 300}] * rng.choice([1, 10_000])
    return "/v1/score", [
        _like(texts=many),
        _like(texts=many, history=[]),
        _like(history=[], candidates=[{"title": "", "no": 1}] * 900),
    ]


HEAVY: dict[str, Callable[[random.Random, list[str], list[str]], Asked | bytes]] = {
    "256 cheap rows": _cheap_rows,
    "230,400 results": _many_results,
    "the whole catalogue": _whole_catalogue,
    "new titles": _new_titles,
    "titles in the history": _titles_in_history,
    "40,000 events": _long_history,
    "huge k": _large_k,
    "wide lists": _lists,
    "conditions": _conditions,
    "diversity": _diverse,
    "user columns": _columns,
    "long names": _long_names,
    "explanations": _explained,
    "scores that are not finite": _not_finite,
    "much JSON": _much_json,
    "wrong content types": _wrong_types,
    "admin across sites": _across_sites,
    "look-ups": _looked_up,
    "odd rows": _odd_rows,
    "texts": _texts,
}
"""Makers of heavy calls, by kind."""


def audit_code(file: Path) -> str:
    """Python code that records every path its process opens or lists, and every program and connection it starts."""
    return f"""
import os, sys
_to = os.open({str(file)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
def _hook(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], (str, bytes)):
        path = os.path.abspath(os.fsdecode(arguments[0])).replace("\\n", "?")
        os.write(_to, (event + "\\t" + path + "\\n").encode("utf-8", "replace"))
    elif event in ("subprocess.Popen", "os.system", "os.exec", "socket.connect"):
        os.write(_to, (event + "\\t-\\n").encode())
sys.addaudithook(_hook)
"""


def foreign(lines: str, own: list[Path], pid: int) -> set[str]:
    """Return paths outside the registry, the data set, Python's own code and the process's own figures."""
    code = Path(__file__).resolve().parent.parent / "adapters"
    places = [*own, code, Path(sys.prefix), Path(sys.base_prefix), Path(sysconfig.get_path("stdlib"))]
    roots = [f"{place.resolve()}/" for place in places] + [f"/proc/{pid}/", "/proc/self/"]
    strays = set()
    for line in lines.splitlines():
        event, _, path = line.partition("\t")
        if path == "-" or not any(f"{path}/".startswith(root) for root in roots):
            strays.add(line)
    return strays
