"""Hostile calls, one per number, and the audit of what a process opens.

Owns: malformed bodies (no JSON, or another shape), hostile calls, the audit hook, what counts as foreign. Ignores: sending.
"""

import json
import random
import sys
import sysconfig
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
