"""Calls: what is answered, what fails alone, what is refused as a whole."""

import json
import re

import pytest
from serving_fakes import open_engine, raw, serving

from genre.engine import Request
from genre.engine.explain import explain

ROWS = [
    {"id": "a", "adapter": "like@production", "user_id": "u3", "candidates": ["i0", "i7", {"title": "war 99"}]},
    {"id": "b", "adapter": "next_item@production", "user_id": "u4", "k": 5},
    {
        "id": "c",
        "adapter": "rating@production",
        "candidates": ["i2"],
        "history": [{"item_id": "i1", "rating": 5}, {"item": {"title": "love 77"}, "rating": 1}],
    },
    {"id": "d", "adapter": "next_item@production", "history": [], "k": 3, "deny": ["i1"]},
    {"id": "e", "adapter": "like@production", "history": [], "user": {"age": 20}, "candidates": ["i2", "i3"], "k": 1},
]


def post(client, path, rows, **options):
    return client.post(path, json={"requests": rows}, **options)


def close(one, other):
    assert [item["item_id"] for item in one["results"]] == [item.item_id for item in other.results]
    for item, wanted in zip(one["results"], other.results, strict=True):
        assert abs(item["score"] - wanted.score) < 1e-5


def test_several_tasks_in_one_call_get_the_engines_scores_in_order(asked):
    answer = post(asked.client, "/v1/score", ROWS)
    assert answer.status_code == 200
    responses = answer.json()["responses"]
    wanted = asked.engine.score([Request.from_json(row) for row in ROWS])
    assert [row["id"] for row in responses] == list("abcde")
    for row, want, asked_row in zip(responses, wanted, ROWS, strict=True):
        assert row["adapter"] == asked_row["adapter"] and row["digest"] == want.digest
        close(row, want)


def test_recommend_gives_ten_with_titles(asked):
    (row,) = post(asked.client, "/v1/recommend", [{"adapter": "next_item", "user_id": "u3"}]).json()["responses"]
    (wanted,) = asked.engine.score([Request("next_item@production", user_id="u3", k=10)])
    assert row["adapter"] == "next_item"
    assert [item["item_id"] for item in row["results"]] == [item.item_id for item in wanted.results]
    assert all(re.fullmatch(r"(war|love) \d+", item["title"]) for item in row["results"])
    (few,) = post(
        asked.client, "/v1/recommend", [{"adapter": "like", "user_id": "u3", "k": 2, "candidates": ["i1", {"title": "x"}]}]
    ).json()["responses"]
    assert {item["title"] for item in few["results"]} == {"war 1", "x"}


def test_seen_items_and_empty_lists(asked, log):
    seen = [event["item_id"] for event in log.history("u3")]
    row = {"adapter": "next_item", "user_id": "u3", "k": 30}
    plain, kept, empty = post(asked.client, "/v1/recommend", [row, row | {"exclude_seen": False}, row | {"allow": seen}]).json()[
        "responses"
    ]
    assert not set(seen) & {item["item_id"] for item in plain["results"]} and "note" not in plain
    assert set(seen) <= {item["item_id"] for item in kept["results"]}
    assert empty["results"] == [] and empty["note"].endswith("items is in the history, and exclude_seen: false keeps those")
    strange, silent = post(
        asked.client,
        "/v1/score",
        [row | {"user_id": None, "history": [{"item_id": "i1", **said}]} for said in ({"stars": 5}, {})],
    ).json()["responses"]
    assert "history[0] has an unknown field: got stars; expected item_id" in strange["error"]
    assert "history[0] has no rating" in silent["error"]


@pytest.mark.parametrize("method", ["leave_one_out", "gradient"])
def test_explain_is_the_librarys(asked, method):
    row = {"id": "1", "adapter": "like", "user_id": "u3", "item": "i0", "method": method}
    (got,) = post(asked.client, "/v1/explain", [row]).json()["responses"]
    wanted = explain(asked.engine, Request("like@production", user_id="u3", k=1), "i0", method=method)
    assert got["id"] == "1" and got["adapter"] == "like" and got["digest"] == wanted.digest and got["method"] == method
    shares = {event.place: event.share for event in wanted.events}
    assert {event["place"] for event in got["events"]} == set(shares)
    assert all(abs(event["share"] - shares[event["place"]]) < 1e-3 for event in got["events"])


FAILS = [
    (5, "a request is not a JSON object: got 5; expected an object"),
    (None, "a request is not a JSON object"),
    ({}, "a request has no adapter"),
    ({"adapter": "like@production", "stray": 1}, "unknown field: got stray"),
    ({"adapter": "nothing", "history": [], "k": 1}, "no such adapter is served here: got nothing; expected like@production"),
    ({"adapter": "like@candidate", "history": [], "k": 1}, "no such adapter is served here"),
    ({"adapter": "../../etc/passwd", "history": [], "k": 1}, "no such adapter is served here"),
    ({"adapter": "like:0123456789ab", "history": [], "k": 1}, "no such adapter is served here"),
    ({"adapter": "encoder-planted", "history": [], "k": 1}, "no such adapter is served here"),
    ({"adapter": "like", "k": 1}, "needs a history or a user_id"),
    ({"adapter": "like", "history": []}, "needs candidates or k"),
    ({"adapter": "like", "history": {}, "k": 1}, "history cannot be used: got {}; expected a list"),
    ({"adapter": "like", "history": [1], "k": 1}, "history[0] cannot be used: got 1; expected an object"),
    ({"adapter": "like", "user_id": 7, "k": 1}, "user_id cannot be used"),
    ({"adapter": "like", "user_id": "nobody", "k": 1}, "unknown user"),
    ({"adapter": "like", "history": [], "candidates": ["i999"]}, "unknown item: got i999"),
    ({"adapter": "like", "history": [], "candidates": [{"colour": "red"}]}, "an item has an unknown column: got colour"),
    ({"adapter": "like", "history": [{"item_id": "i1", "rating": "x"}], "k": 1}, "rating in the history is not a number"),
    ({"adapter": "like", "task": "other", "history": [], "k": 1}, "unknown task"),
    ({"adapter": "like", "task": [[]], "history": [], "k": 1}, "task cannot be used: got [[]]"),
    ({"adapter": "like", "history": [], "candidates": ["i1"] * 70_000}, "the request asks for too much at once"),
]


@pytest.mark.parametrize(("row", "message"), FAILS[:-1], ids=[message[:30] for _, message in FAILS[:-1]])
def test_a_bad_row_fails_alone(asked, row, message):
    answer = post(asked.client, "/v1/score", [ROWS[0], row, ROWS[3]])
    assert answer.status_code == 200
    first, bad, last = answer.json()["responses"]
    assert "results" in first and "results" in last
    assert message in bad["error"] and "results" not in bad


def test_a_row_that_is_too_much_work_fails_alone(trained):
    with open_engine(trained) as engine, serving(engine, ["like"]) as (_, client):
        row, message = FAILS[-1]
        bad, good = post(client, "/v1/score", [row, {"adapter": "like", "history": [], "k": 1}]).json()["responses"]
        assert message in bad["error"] and "results" in good


def test_what_can_be_asked_without_a_data_set(trained):
    with open_engine(trained, data=False) as engine, serving(engine, ["like@production", "next_item"]) as (_, client):
        rows = [
            {"adapter": "like", "user_id": "u3", "k": 1},
            {"adapter": "like", "history": [{"item_id": "i1", "rating": 4}], "user": {"age": 30}, "candidates": ["i0"]},
        ]
        bad, good = post(client, "/v1/score", rows).json()["responses"]
        assert "user_id needs a data set" in bad["error"] and len(good["results"]) == 1
        assert client.get("/v1/items?q=WAR 1").json()["items"][0] == {"item_id": "i1", "title": "war 1"}
        for path in ("/v1/users", "/v1/history?user_id=u1"):
            assert client.get(path).status_code == 404 and client.get(path).json()["code"] == "not_found"
        assert client.get("/v1/adapters").json()["data"] is None
        (row,) = post(client, "/v1/recommend", [{"adapter": "next_item", "history": []}]).json()["responses"]
        assert row["results"][0]["title"].split()[0] in ("war", "love")


BODIES = [
    (b"", 400, "bad_json", "the body is not JSON"),
    (b"not json", 400, "bad_json", "line 1 column"),
    (b'{"requests": [', 400, "bad_json", "EOF"),
    (b'{"requests": [{"adapter": NaN}]}', 400, "bad_json", "expected value"),
    (b'{"requests": [{"adapter": Infinity}]}', 400, "bad_json", "expected value"),
    (b'{"requests": [{"k": 1e999}]}', 400, "bad_number", "a number is out of range"),
    (b'{"requests": [{"k": -1e400}]}', 400, "bad_number", "a number is out of range"),
    (b'{"requests": [{"k": ' + b"9" * 400 + b"}]}", 400, "bad_number", "a number is out of range"),
    (b'{"requests": [{"k": ' + b"9" * 5000 + b"}]}", 400, "bad_json", "out of range"),
    (b'{"requests": ' + b"[" * 50_000, 400, "bad_json", "recursion limit"),
    (b'{"a":' * 10_000, 400, "bad_json", "recursion limit"),
    (b'{"requests": ["\xff\xfe"]}', 400, "bad_json", "unicode"),
    (b'{"requests": ["\\ud800"]}', 400, "bad_json", "the body is not JSON"),
    (b'{"requests": ["' + b"x" * 9000 + b'"]}', 400, "too_long", "a text is too long: got 9000"),
    (b"[]", 422, "bad_body", "the body is not a JSON object: got []"),
    (b"null", 422, "bad_body", "the body is not a JSON object: got None"),
    (b"{}", 422, "bad_body", "the body has no requests"),
    (b'{"requests": {}}', 422, "bad_body", "requests cannot be used: got {}; expected a list"),
    (b'{"requests": null}', 422, "bad_body", "requests cannot be used: got None; expected a list"),
    (b'{"requests": []}', 422, "bad_body", "requests has a wrong length: got 0; expected at least 1"),
    (b'{"requests": [' + b"1," * 50 + b"1]}", 422, "bad_body", "requests has a wrong length: got 51"),
    (b'{"requests": [1], "more": 2}', 422, "bad_body", "the body has an unknown field: got more"),
    (b'{"requests": [' + b" " * 200_000 + b"1]}", 413, "too_large", "the body is too large"),
]


@pytest.mark.parametrize("path", ["/v1/score", "/v1/recommend", "/v1/explain"])
def test_a_malformed_body_gets_a_clear_4xx(asked, path):
    for body, status, code, message in BODIES:
        answer = asked.client.post(path, content=body, headers={"Content-Type": "application/json"})
        found = answer.json()
        assert (answer.status_code, found["code"]) == (status, code), body[:40]
        assert message in found["error"] and len(found["error"]) < 700
        assert found["request_id"] == answer.headers["X-Request-ID"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", None])
def test_a_body_that_a_form_could_send_is_refused(asked, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    answer = asked.client.post("/v1/score", content=json.dumps({"requests": ROWS}), headers=headers)
    assert answer.status_code == 415 and answer.json()["code"] == "not_json"


def head(path="/v1/score", *more, host="127.0.0.1"):
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", *more, "", ""]
    return "\r\n".join(lines).encode()


def address(asked):
    return asked.client.base_url.host, asked.client.base_url.port


def test_a_chunked_body_is_counted(asked):
    chunk = b"%x\r\n" % 60_000 + b" " * 60_000 + b"\r\n"
    answer = raw(
        address(asked),
        head("/v1/score", "Transfer-Encoding: chunked", "Connection: close"),
        chunk,
        chunk,
        chunk,
        chunk,
        b"0\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 413") and b'"code":"too_large"' in answer


def test_a_body_that_does_not_come_is_given_up(hurried):
    answer = raw(hurried, head("/v1/score", "Content-Length: 100"), b'{"requests"')
    assert answer.startswith(b"HTTP/1.1 408") and b'"code":"slow_body"' in answer


def test_request_ids_come_back_and_cannot_carry_lines(asked):
    assert asked.client.get("/livez", headers={"X-Request-ID": "my-id.1_A"}).headers["X-Request-ID"] == "my-id.1_A"
    for bad in ("a b", "x" * 65, "<script>", "a%0d%0aSet-Cookie:1", "\u00e4"):
        found = asked.client.get("/nope", headers={"X-Request-ID": bad.encode()}).headers["X-Request-ID"]
        assert re.fullmatch("[0-9a-f]{32}", found)
    answer = raw(
        address(asked), b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Request-ID: a\nX-Evil: 1\r\nConnection: close\r\n\r\n"
    )
    assert b"X-Evil" not in answer


def test_only_loopback_names_are_answered(asked):
    for host in ("evil.example", "127.0.0.1.evil.example", "", "localhost:80:80", "[::1"):
        answer = asked.client.get("/v1/adapters", headers={"Host": host})
        assert answer.status_code in (400, 421), host
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"):
        assert asked.client.get("/livez", headers={"Host": host}).status_code == 200, host


def test_other_sites_get_nothing(asked):
    answer = asked.client.options("/v1/score", headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"})
    assert answer.status_code == 405
    answer = post(asked.client, "/v1/score", ROWS, headers={"Origin": "http://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
    assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_unknown_paths_and_methods_say_so(asked):
    for path in ("/nope", "/v1/score/", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/page.py", "/static/../app.py"):
        answer = asked.client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
    answer = asked.client.get("/v1/score")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed") and answer.headers["allow"] == "POST"


def test_people_find_items_users_and_histories(asked):
    get = asked.client.get
    assert [item["item_id"] for item in get("/v1/items", params={"q": "war 2", "limit": 3}).json()["items"]] == [
        "i21",
        "i23",
        "i25",
    ]
    assert get("/v1/items", params={"q": "i7"}).json()["items"] == [{"item_id": "i7", "title": "war 7"}]
    assert get("/v1/items", params={"q": "(.*[", "limit": 1}).json()["items"] == []
    assert len(get("/v1/items").json()["items"]) == 20
    assert get("/v1/users", params={"q": "u5", "limit": 2}).json()["users"] == [
        {"user_id": "u5", "events": 24},
        {"user_id": "u50", "events": 24},
    ]
    found = get("/v1/history", params={"user_id": "u3", "limit": 2}).json()
    assert found["total"] == 24 and found["columns"] == {"age": 23}
    latest = asked.engine.data.history("u3")[-2:]
    assert [(event["item_id"], event["rating"]) for event in found["events"]] == [
        (one["item_id"], one["rating"]) for one in latest
    ]
    assert get("/v1/history", params={"user_id": "nobody"}).status_code == 404
    for query in ("limit=0", "limit=x", "limit=1001", f"q={'x' * 201}"):
        answer = get(f"/v1/items?{query}")
        assert answer.status_code == 422 and answer.json()["code"] == "bad_parameter", query


def test_adapters_says_what_is_served(asked):
    found = asked.client.get("/v1/adapters").json()
    assert found["data"] == {"name": "planted", "users": 60, "items": 30, "events": 1440} and found["admin"] is False
    assert [one["ref"] for one in found["adapters"]] == ["like@production", "next_item@production", "rating@production"]
    like = found["adapters"][0]
    assert like["digest"] == asked.engine.resident()["like@production"] and like["resident"]
    assert like["aliases"]["production"] == like["version"] == like["digest"][:12]
    assert like["tasks"] == [{"name": "like", "kind": "feedback", "label": "rating > 3", "head": "binary"}]
    assert like["feedback"] == {"column": "rating", "values": [1.0, 2.0, 4.0, 5.0]}
    assert set(like["metrics"]["like"]["auc"]) == {"value", "interval", "n"}
    assert {move["alias"] for move in like["history"]} == {"latest", "production"}


def test_the_page_is_a_fixed_set_of_files(asked, tmp_path):
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from genre.serving.http.page import mount, read_files

    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text("<h1>hello</h1>")
    (tmp_path / "sub" / "app.js").write_text("1")
    (tmp_path / "secret.py").write_text("no")
    app = FastAPI()
    mount(app, read_files(tmp_path))
    with TestClient(app) as client:
        assert client.get("/").text == "<h1>hello</h1>" and client.get("/").headers["content-type"] == "text/html; charset=utf-8"
        first = client.get("/sub/app.js")
        assert first.text == "1"
        assert client.get("/sub/app.js", headers={"If-None-Match": first.headers["etag"]}).status_code == 304
        assert client.get("/secret.py").status_code == client.get("/index.html/../secret.py").status_code == 404
    assert read_files(tmp_path / "none") == {}
