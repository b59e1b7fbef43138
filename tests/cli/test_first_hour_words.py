"""What a newcomer types in the first hour and what the program answers: one line that says what to do."""

import json
import shutil

import polars as pl
import pytest
import yaml

from builders import LIKE, recipe
from genre import cli
from genre.data.catalogue import Catalogue, Titles
from genre.errors import InputError
from genre.registry import Registry


@pytest.fixture
def place(tmp_path, monkeypatch, trained, log):
    monkeypatch.chdir(tmp_path)
    log.write("shop")
    shutil.copytree(trained.registry.url, "registry")
    (tmp_path / "like.yaml").write_text(recipe(trained.base, LIKE, data={"path": "shop"}, train={"epochs": 1}).dump())
    return tmp_path


@pytest.fixture
def said(place, capsys):
    def run(*arguments, code):
        assert cli.main([str(argument) for argument in arguments]) == code
        shown = capsys.readouterr()
        lines = [line.removeprefix("genre: ") for line in shown.err.splitlines() if line.startswith("genre: ")]
        assert len(lines) == (1 if code else 0)
        return shown.out + "".join(lines)

    return run


PAIRS = {
    "swapped": (["when=timestamp"], "--map when=timestamp is the wrong way round: "),
    "all swapped": (["uid=user_id", "sku=item_id", "when=timestamp"], "give --map user_id=uid, our name first"),
    "misspelt": (["user_id=uidd"], "no column 'uidd' to take user_id from"),
}


@pytest.mark.parametrize("case", PAIRS)
def test_a_swapped_map_is_turned_round(case, said, place):
    pairs, message = PAIRS[case]
    (place / "log.csv").write_text("uid,sku,when\n1,a,1\n1,b,2\n2,a,3\n")
    options = [word for pair in pairs for word in ("--map", pair)]
    assert message in said("data", "import", "log.csv", "--out", "new", *options, code=2)


KEYS = {
    "tsaks": ("tsaks", "unknown key 'tsaks'", "did you mean 'tasks'?"),
    "nmae": ("nmae", "unknown key 'nmae'", "did you mean 'name'?"),
    "dta": ("dta", "unknown key 'dta'", "did you mean 'data'?"),
}


@pytest.mark.parametrize("case", KEYS)
def test_a_misspelt_key_is_named_before_the_one_that_is_missing(case, said, place):
    key, *messages = KEYS[case]
    right = {"tsaks": "tasks", "nmae": "name", "dta": "data"}[key]
    raw = yaml.safe_load((place / "like.yaml").read_text())
    raw[key] = raw.pop(right)
    (place / "like.yaml").write_text(yaml.safe_dump(raw))
    line = said("recipe", "check", "like.yaml", code=2)
    assert all(message in line for message in messages)
    del raw[key]
    (place / "like.yaml").write_text(yaml.safe_dump(raw))
    assert f"the key '{right}' is missing" in said("recipe", "check", "like.yaml", code=2)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.epochs", 1.5, "train.epochs: got 1.5; expected a whole number"),
        ("train.epochs", "many", "train.epochs: got 'many'; expected a whole number"),
        ("train.learning_rate", "fast", "train.learning_rate: got 'fast'; expected a number"),
        ("adapter.rank", 0, "adapter.rank: got 0; expected at least 1"),
        ("base", 3, "base: got 3; expected an object"),
        ("sequence.text", 3, "sequence.text: got 3; expected a list"),
        ("data.path", 3, "data.path: got 3; expected a text"),
        ("train.learning_rate", float("nan"), "train.learning_rate: got nan; expected a finite number"),
    ],
)
def test_no_sentence_of_a_library_reaches_the_user(key, value, message, said, place):
    raw = yaml.safe_load((place / "like.yaml").read_text())
    *parents, last = key.split(".")
    section = raw
    for part in parents:
        section = section[part]
    section[last] = value
    (place / "like.yaml").write_text(yaml.safe_dump(raw))
    line = said("train", "like.yaml", code=2)
    assert message in line and "Input should" not in line and "Field required" not in line


def test_an_unknown_user_names_nobody_else(said, trained, log):
    line = said("recommend", "like", "--data", "shop", "--base", trained.base, "--user", "nobody", code=2)
    assert "unknown user: got 'nobody'; expected one of the 60 users of the log" in line
    assert not any(f" {user}" in line for user in log.user_ids)


def test_explain_takes_a_title(said, trained, log):
    title = log.catalogue.titles()[3]
    common = ["like", "--data", "shop", "--base", trained.base, "--user", "u1", "--item"]
    by_id = said("explain", *common, log.catalogue.item_ids[3], code=0)
    assert said("explain", *common, title.upper(), code=0) == by_id and title in by_id
    assert "no item has this title: got 'nothing'" in said("explain", *common, "nothing", code=2)


def test_promoting_what_is_there_already_moves_nothing(said):
    before = Registry("registry").history("like")
    version = Registry("registry").aliases("like")["production"]
    assert said("registry", "promote", "like@production", code=0).strip() == (
        f"like@production names {version} already; nothing was moved"
    )
    assert Registry("registry").history("like") == before
    assert "misses the floor" in said("registry", "promote", "like@production", "--floor", "auc=2", code=2)
    assert f"like@best: nothing → {version}" in said("registry", "promote", "like", "best", code=0)


def test_a_damaged_alias_names_its_repair(said, place):
    registry = Registry("registry")
    registry.promote("like", "best")
    newest = max((place / "registry/like/aliases").glob("*.json"), key=lambda path: int(path.stem))
    for content in ("{", "{}", newest.read_text().replace("best", "rest")):
        newest.write_text(content)
        line = said("registry", "show", "like", code=2)
        assert f"restore registry/like/aliases/{newest.name} from a copy; if it is the newest of its folder, removing it" in line
    newest.unlink()
    assert "best" not in registry.aliases("like") and said("registry", "show", "like", code=0)


def test_failed_rows_are_counted_and_strict_fails(said, place, trained):
    good = {"adapter": "like", "history": [], "candidates": ["i1"]}
    rows = [good, {**good, "candidates": ["nope"]}, good]
    (place / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["score", "--input", "in.jsonl", "--data", "shop", "--base", trained.base, "--output"]
    assert "3 rows in out.jsonl, 1 of them errors" in said(*common, "out.jsonl", code=0)
    line = said(*common, "again.jsonl", "--strict", code=1)
    assert "1 of 3 rows failed: their lines in the output say why" in line
    assert (place / "again.jsonl").read_text() == (place / "out.jsonl").read_text()
    (place / "in.jsonl").write_text(json.dumps(good) + "\n")
    assert "0 of them errors" in said(*common, "fine.jsonl", "--strict", code=0)


def test_an_empty_registry_is_no_error_of_the_first_run(said, place):
    assert "no adapter 'like': got the registry at empty, which is empty; genre train publishes into it" in said(
        "registry", "show", "like", "--registry", "empty", code=2
    )


TITLES = [
    "Matrix, The (1999)",
    "Matrix Reloaded, The (2003)",
    "Escape from L.A. (1996)",
    "L'Atalante (1934)",
    "Bug's Life, A (1998)",
]
TITLES += ["Solaris (1972)", "Solaris (2002)", "Avventura, L' (1960)", "Heat (1995)"]


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("The Matrix", "Matrix, The (1999)"),
        ("the matrix (1999)", "Matrix, The (1999)"),
        ("Matrix, The", "Matrix, The (1999)"),
        ("matrix, the (1999)", "Matrix, The (1999)"),
        ("The Matrix Reloaded", "Matrix Reloaded, The (2003)"),
        ("A Bug's Life", "Bug's Life, A (1998)"),
        ("L'avventura", "Avventura, L' (1960)"),
        ("Heat", "Heat (1995)"),
        ("Solaris (2002)", "Solaris (2002)"),
        ("atalante", "L'Atalante (1934)"),
    ],
)
def test_titles_are_found_as_people_say_them(text, title):
    titles = Titles(Catalogue(pl.DataFrame({"item_id": [f"f{n}" for n in range(len(TITLES))], "title": TITLES})))
    assert titles.of(titles.find(text)) == title
    with pytest.raises(InputError, match="several items have this title"):
        titles.find("Solaris")
