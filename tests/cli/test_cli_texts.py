"""Labelled texts from a stranger's CSV to a merged adapter, by the commands that users type; on an encoder and a causal base."""

import json
import os
import re
import sys

import polars as pl
import pytest

from fakes import make_base, make_encoder_base, planted_log, planted_texts
from genre import cli
from genre.recipe import Recipe
from genre.registry import Registry

IMPORT = (
    "data import reviews.csv --map title=headline --map review=body --map group_id=product --map recommended=liked "
    "--map rating=stars --text title --text review --label recommended --label rating --out data/reviews"
)
SMALL = "--set train.tracker=none --set train.epochs=1 --set train.learning_rate=0.005"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a CSV of reviews, a log, an encoder and a causal base."""
    folder = tmp_path_factory.mktemp("cli-texts")
    theirs = {"group_id": "product", "title": "headline", "review": "body", "recommended": "liked", "rating": "stars"}
    planted_texts().frame.select(pl.col(ours).alias(own) for ours, own in theirs.items()).write_csv(folder / "reviews.csv")
    make_encoder_base(folder / "bert")
    make_base(folder / "llama")
    planted_log(users=12).write(folder / "log")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def run(capsys, command):
    """Standard output of a command that ends well."""
    code = cli.main(command.split())
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return shown.out


def refused(capsys, command):
    assert cli.main(command.split()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line


@pytest.fixture
def imported(place, capsys):
    return run(capsys, IMPORT)


@pytest.fixture
def trained(place, imported, capsys):
    """What was printed on the way to a joint adapter `reviews` and one for each task, `a` and `b`."""
    if not (place / "registry").is_dir():
        run(capsys, f"recipe new --data data/reviews --label recommended --label rating --base bert --name reviews {OUT}")
        shown = run(capsys, f"train reviews.yaml {SMALL} --json run.json")
        assert "tfidf linear" in shown and "published reviews:" in shown
        for name, label in (("a", "recommended"), ("b", "rating")):
            run(capsys, f"recipe new text --data data/reviews --label {label} --base bert --name {name}")
            run(capsys, f"train {name}.yaml {SMALL}")
    return json.loads((place / "run.json").read_text())


OUT = "--out reviews.yaml"


def test_import_and_describe(place, imported, capsys):
    assert "Texts(reviews: 320 texts in 80 groups)" in imported and "group of its own" not in imported
    shown = run(capsys, "data describe data/reviews")
    for part in ("words per text", "label recommended", "label rating", "text columns filled", "title 100.0%"):
        assert part in shown
    facts = json.loads(run(capsys, "data describe data/reviews --json"))
    assert facts["texts"] == 320 and set(facts["labels"]["rating"]["values"]) == {"1", "3", "5"}
    alone = run(capsys, "data import reviews.csv --text body --label stars --out data/alone")
    assert "each text is a group of its own; with --map group_id=COLUMN" in alone


def test_a_recipe_is_written_checked_and_trains(place, trained, capsys):
    written = Recipe.read("reviews.yaml")
    assert [(task.loss, task.label) for task in written.tasks] == [("log_loss", "recommended"), ("cross_entropy", "rating")]
    assert written.sequence.text == ("title", "review") and written.sequence.max_tokens == 32 and written.sequence.terms == 20000
    shown = run(capsys, "recipe check reviews.yaml").splitlines()
    assert shown[0] == "reviews.yaml: 320 texts in 80 groups; 252 train, 28 validate, 40 test, no group on two sides"
    assert shown[1].startswith("task recommended: 252 training labels, mean 0.")
    assert shown[2] == "task rating: 232 training labels, classes 1 31.9%, 3 35.8%, 5 32.3%"
    assert shown[3] == "one training row: text 0 (group g0), 22 tokens of at most 32"
    assert re.fullmatch(r' {4}"\[CLS] ?title 0; a the XX ## ?\[SEP]"', shown[4])
    assert shown[5].startswith("    the mean of all tokens' states, and at most 20,000 counted terms    → ")
    assert shown[5].endswith("→ recommended = 0, rating = 3")
    assert shown[6] == "7 of the first 252 training texts are longer than sequence.max_tokens and lose their end"
    assert shown[-1] == "the recipe is fine"
    causal = run(capsys, "recipe check reviews.yaml --set base.name=llama")
    assert "    the last token's state, and at most 20,000 counted terms    → recommended = " in causal


def test_evaluate_shows_what_counting_words_gives(place, trained, capsys):
    shown = run(capsys, "evaluate reviews --data data/reviews --base bert --json eval.json")
    assert "majority" in shown and "tfidf linear" in shown and "protocol of rating: group" in shown
    assert json.loads((place / "eval.json").read_text())["tasks"]["rating"]["adapter"] == trained["metrics"]["rating"]


@pytest.mark.parametrize("data", ["", "--data data/reviews"])
def test_a_file_of_texts_is_scored(data, place, trained, capsys):
    rows = [
        {"id": "1", "adapter": "reviews", "task": "recommended", "texts": [{"title": "x", "review": "XX ++"}, {"review": "oo"}]},
        {"id": "2", "adapter": "a", "texts": [{"text_id": "mine", "review": "it XX @@"}]},
        {"id": "3", "adapter": "b", "texts": [{"body": "it XX @@"}]},
    ]
    (place / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "out.jsonl").unlink(missing_ok=True)
    shown = run(capsys, f"score --input in.jsonl --output out.jsonl --base bert {data}")
    assert "3 rows in out.jsonl, 1 of them errors" in shown
    first, second, third = (json.loads(line) for line in (place / "out.jsonl").read_text().splitlines())
    assert first["results"][0]["score"] > first["results"][1]["score"] and second["results"][0]["text_id"] == "mine"
    assert "a text has an unknown column: got body; expected title, review" in third["error"]


def test_text_adapters_are_merged_behind_the_gate(place, trained, capsys):
    before = len(Registry("registry").list())
    arguments = "merge a b --as both --data data/reviews --base bert"
    said = refused(capsys, f"{arguments} --floor 50")
    assert "both is not published: below 50 of a parent on validation" in said
    assert len(Registry("registry").list()) == before
    shown = run(capsys, f"{arguments} --floor 0")
    assert "published both:" in shown and "validation recommended.auc" in shown and "validation rating.accuracy" in shown
    shown = run(capsys, "evaluate both --data data/reviews --base bert")
    assert "task recommended" in shown and "task rating" in shown


def test_the_same_recipe_on_a_causal_base(place, trained, capsys):
    shown = run(capsys, f"train reviews.yaml {SMALL} --set base.name=llama --set name=causal")
    assert "published causal:" in shown
    manifest = Registry("registry").resolve("causal").manifest
    assert manifest.sequence["pool"] == "last" and manifest.reads == "texts"
    assert "tfidf linear" in run(capsys, "evaluate causal --data data/reviews --base llama")


REFUSED = {
    "data import reviews.csv --text body --out o": "no column is named as a label: got product, headline, liked, stars; expected",
    "data import reviews.csv --label stars --out o": "no text column is named: got --label alone; expected --text COLUMN",
    "data import reviews.csv --text body --label stars --items i.csv --out o": "--items is for logs: got --text or --label",
    "data import reviews.csv --text words --label stars --out o": "the texts have no text column 'words'",
    "data import reviews.csv --text body --label body --out o": "column 'body' is named as a text and as a label",
    "recipe new like --data data/reviews": "task like reads a log: got labelled texts; expected text, or no task",
    "recipe new text --data log": "a task of kind text reads labelled texts: got a log; expected like, rating, next_item",
    "recipe new --data log": "no task is named: got a log; expected like, rating, next_item",
    "recipe new --data data/reviews --label stars": "the texts have no label column 'stars': got recommended, rating",
    "recipe new --data data/reviews --text body": "no such text column: got body; expected title, review",
    "recipe new --data data/reviews --label rating>9": "label 'rating>9' does not distinguish the texts",
    "recipe new --data data/reviews --feedback rating": "--feedback is for logs",
    "recipe new next_item --data log --label rating": "task next_item takes no label",
    "recipe new like --data log --label stars>3": "task 'like' needs the feedback column 'stars'",
    "recipe new like --data log --name Mine": "recipe: name: got 'Mine'",
    "recipe check reviews.yaml --set sequence.text=[body]": "the texts have no column 'body'",
    "recipe check reviews.yaml --set sequence.max_tokens=200": "sequence.max_tokens is more than the base has positions for",
    "recipe check reviews.yaml --set data.path=log": "log holds no labelled texts: got no texts.parquet",
    "recipe check reviews.yaml --set base.depth=9": "base.depth is out of range: got 9; expected 1 to 2 for base 'bert'",
    "evaluate reviews --data log --base bert": "log holds no labelled texts",
    "recommend reviews --data log --base bert --user u1": "reviews reads labelled texts: got no texts",
    "train reviews.yaml --set data.path=log": "log holds no labelled texts",
}


@pytest.mark.parametrize("command", REFUSED)
def test_what_does_not_fit_is_refused_in_a_line(command, place, trained, capsys):
    assert REFUSED[command] in refused(capsys, command)


def test_a_log_on_an_encoder_is_refused_before_it_trains(place, capsys):
    run(capsys, "recipe new like --data log --out like.yaml --base llama")
    command = "recipe check like.yaml --set base.name=bert --set base.depth=2"
    assert "whose rows are a user's events with many targets, needs a causal base: got the encoder 'bert'" in refused(
        capsys, command
    )
    shown = run(capsys, "recipe check like.yaml --set base.depth=2").splitlines()
    row = next(place for place, line in enumerate(shown) if line.startswith("one training row: user "))
    assert "Items and feedback of one user, in order:" in shown[row + 1]
    assert shown[row + 2].startswith(" 1  ‹item ") and "    → like = " in shown[row + 2]
    assert shown[row + 3].startswith("    ‹rating ") and "more events" in shown[row + 8]


def test_on_a_terminal_it_asks(place, imported, capsys, monkeypatch):
    """The questions and answers go through a pseudo-terminal; a wrong answer is told, and asked for again."""
    ours, theirs = os.openpty()
    with open(os.dup(theirs), encoding="utf-8") as reader, open(theirs, "w", encoding="utf-8") as writer:
        monkeypatch.setattr(sys, "stdin", reader)
        monkeypatch.setattr(sys, "stdout", writer)
        os.write(ours, b"review\nstars\nrating, recommended\n")
        assert cli.main(["recipe", "new", "--data", "data/reviews", "--name", "asked"]) == 0
        print("the end", flush=True)
        shown = ""
        while "the end" not in shown:
            shown += os.read(ours, 65536).decode()
        monkeypatch.undo()
    os.close(ours)
    assert "text columns (title, review) [title, review]" in shown and "labels (recommended, rating) [recommended]" in shown
    assert "the texts have no label column 'stars'" in shown and "wrote asked.yaml" in shown
    written = Recipe.read("asked.yaml")
    assert written.sequence.text == ("review",) and [task.name for task in written.tasks] == ["rating", "recommended"]
