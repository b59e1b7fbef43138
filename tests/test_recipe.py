"""Recipes: defaults, overrides, every check's text; every recipe of the repository is read."""

from pathlib import Path

import pytest
import yaml

from genre.errors import RecipeError
from genre.recipe import CodesConfig, Recipe

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
PLAIN = {
    "name": "like",
    "data": {"path": "data/x"},
    "tasks": [{"name": "like", "kind": "feedback", "label": "rating > 3"}, {"name": "next_item", "kind": "next_item"}],
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "like.yaml"
    path.write_text(yaml.safe_dump(PLAIN, sort_keys=False))
    return path


def refused(raw) -> str:
    with pytest.raises(RecipeError) as error:
        Recipe.parse(raw)
    assert error.value.exit_code == 2 and "\n" not in str(error.value)
    return str(error.value)


def changed(path: str, value):
    """The plain recipe with one key set, by its dotted path."""
    raw = yaml.safe_load(yaml.safe_dump(PLAIN))
    *parents, last = path.split(".")
    place = raw
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    place[int(last) if isinstance(place, list) else last] = value
    return raw


def test_the_defaults_of_the_design():
    made = Recipe.parse(PLAIN)
    assert made.base.name == "smollm2-135m" and made.base.quantization == "none" and made.base.depth is None
    assert made.data.split.kind == "temporal" and (made.data.split.valid, made.data.split.test) == (0.1, 0.1)
    assert made.sequence.item == "token" and made.encoder.use == "auto" and made.data.max_events == 100
    assert (made.adapter.kind, made.adapter.rank, made.adapter.alpha, made.adapter.dropout) == ("lora", 8, 16, 0)
    assert made.adapter.targets == "all-linear" and made.adapter.layers == "all"
    assert (made.train.learning_rate, made.train.seed, made.train.early_stop) == (1e-3, 0, 2)


def test_a_recipe_is_frozen_and_survives_its_dump(tmp_path):
    made = Recipe.parse(changed("adapter", {"targets": ["q_proj", "v_proj"], "layers": [0, -1]}))
    path = tmp_path / "again.yaml"
    path.write_text(made.dump())
    assert Recipe.read(path) == made and made.adapter.targets == ("q_proj", "v_proj")
    with pytest.raises(Exception, match="frozen"):
        made.name = "other"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_read(path):
    assert Recipe.read(path).tasks


def test_there_is_a_recipe_for_each_of_the_three_tasks():
    assert {"like", "rating", "next_item"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("nmae", "name"),
        ("adapter.rnak", "rank"),
        ("tasks.0.metric", "metrics"),
        ("data.split.tset", "test"),
        ("train.learning_rte", "learning_rate"),
        ("sequence.insturction", "instruction"),
        ("encoder.user", "use"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(path, near):
    raw = changed("data.split", {"kind": "temporal"})
    *parents, last = path.split(".")
    place = raw
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    place[last] = 1
    text = refused(raw)
    assert text.startswith(f"recipe: unknown key {path!r}: got {last}; expected ") and text.endswith(f"; did you mean {near!r}?")


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    assert refused(changed("train.seed", seed)).startswith("recipe: train.seed: ")


def test_an_unknown_key_that_is_near_nothing_lists_what_there_is():
    text = refused(changed("encoder.xyzzy", 1))
    assert text == (
        "recipe: unknown key 'encoder.xyzzy': got xyzzy; "
        "expected codes, collaborative, dense, dropout, factors, fuse, learned, min_events, neighbours, taste, text, use, whiten"
    )


WRONG = [
    ("name", "Like it", "recipe: name: got 'Like it'; expected 1 to 64 of a-z 0-9 _ . - that begin"),
    ("base.quantization", "int4", "recipe: base.quantization: got 'int4'; expected 'none', 'int8' or 'nf4'"),
    ("base.precision", "fp16", "recipe: base.precision: got 'fp16'; expected 'auto', 'float32', 'bfloat16' or 'measured'"),
    ("base.depth", 0, "recipe: base.depth: got 0; expected at least 1"),
    ("data.max_events", 1, "recipe: data.max_events: got 1; expected at least 2"),
    ("data.limit", 0, "recipe: data.limit: got 0; expected at least 1"),
    ("data.split", {"kind": "random"}, "recipe: data.split.kind: got 'random'; expected 'last_n', 'temporal'"),
    ("data.split", {"kind": "last_n", "valid": 0.1}, "recipe: data.split: valid does not apply to last_n"),
    ("data.split", {"kind": "given"}, "recipe: data.split: kind 'given' needs test_rows, such as 0-19999"),
    ("sequence.item", "soft", "recipe: sequence.item: got 'soft'; expected 'text', 'token' or 'both'"),
    ("encoder.dropout", 1.0, "recipe: encoder.dropout: got 1.0; expected less than 1"),
    ("encoder.use", "none", "recipe: encoder.use none needs sequence.item text"),
    ("adapter.rank", 0, "recipe: adapter.rank: got 0; expected at least 1"),
    ("adapter.kind", "dora", "recipe: adapter.kind: got 'dora'; expected 'lora', 'rslora'"),
    ("adapter.alpha", -1, "recipe: adapter.alpha: got -1; expected more than 0"),
    ("train.learning_rate", "fast", "recipe: train.learning_rate: got 'fast'; expected a number"),
    ("train.learning_rate", 0, "recipe: train.learning_rate: got 0; expected more than 0"),
    ("train.epochs", 0, "recipe: train.epochs: got 0; expected at least 1"),
    (
        "train.tracker",
        "clearml",
        "recipe: train.tracker: got 'clearml'; expected 'tensorboard', 'mlflow', 'wandb'",
    ),
    ("tasks", [], "recipe: tasks: got []; expected a list of at least 1"),
    ("tasks", [PLAIN["tasks"][0]] * 2, "recipe: two tasks have the same name: like, like"),
    ("tasks.0.loss", "mse", "recipe: tasks.0: head 'binary' takes loss log_loss, not 'mse'"),
    ("tasks.0.label", None, "recipe: tasks.0: a feedback task needs a label, for example: label: rating > 3"),
    ("tasks.0.label", "> 3", "a label cannot be read: got '> 3'"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG, ids=[f"{path}-{value}"[:40] for path, value, _ in WRONG])
def test_every_check_names_the_key_and_says_what_is_wrong(path, value, message):
    assert refused(changed(path, value)).startswith(message)


def test_a_catalogue_needs_an_encoder_even_with_text_items():
    raw = PLAIN | {"sequence": {"item": "text"}, "encoder": {"use": "none"}}
    assert refused(raw) == ("recipe: head 'catalogue' needs an encoder: it scores against its item vectors")


def test_several_mistakes_are_counted():
    assert refused(PLAIN | {"adapter": {"rank": 0, "alpha": 0}}).endswith("(1 more)")
    wrong = [PLAIN["tasks"][0] | {"beam": 5}]  # the one entry of a list that may not be empty
    assert "more)" not in refused(PLAIN | {"tasks": wrong}) and "more)" in refused(
        PLAIN | {"tasks": wrong, "adapter": {"rank": 0}}
    )
    assert "tasks: got []" in refused(PLAIN | {"tasks": []})


def test_a_missing_part_is_named():
    assert refused({"name": "x", "tasks": PLAIN["tasks"]}) == "recipe: the key 'data' is missing"


@pytest.mark.parametrize("row", [5, "like", None])
def test_a_task_that_is_no_mapping_is_refused(row):
    text = refused(PLAIN | {"tasks": [row]})
    assert text.startswith(f"recipe: tasks.0: got {row!r}; expected an object")


# --- files and overrides --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.epochs=3", lambda made: made.train.epochs == 3),
        ("train.learning_rate=1e-3", lambda made: made.train.learning_rate == 1e-3),
        ("train.early_stop=null", lambda made: made.train.early_stop is None),
        ("tasks.0.label=rating >= 5", lambda made: made.tasks[0].label == "rating >= 5"),
        ("tasks.1.seen=kept", lambda made: made.tasks[1].seen == "kept"),
        ("adapter.targets=[q_proj, v_proj]", lambda made: made.adapter.targets == ("q_proj", "v_proj")),
        ("adapter.layers=[0]", lambda made: made.adapter.layers == (0,)),
        ("data.split={kind: last_n, n: 2}", lambda made: (made.data.split.kind, made.data.split.n) == ("last_n", 2)),
        ("base.name=./a=b", lambda made: made.base.name == "./a=b"),
        ("sequence.instruction='User: {age}'", lambda made: made.sequence.instruction == "User: {age}"),
    ],
)
def test_overrides(file, override, value):
    assert value(Recipe.read(file, [override]))


def test_later_overrides_win(file):
    assert Recipe.read(file, ["train.epochs=3", "train.epochs=4"]).train.epochs == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "an override cannot be read: got train.epochs; expected a.b=c; for example --set train.epochs=3"),
        ("=3", "an override cannot be read: got =3; expected a.b=c; for example --set train.epochs=3"),
        ("tasks.5.label=click", "override 'tasks.5.label' names no element: got 5; expected 0 to 1"),
        ("tasks.like.label=click", "override 'tasks.like.label' names no element: got like; expected 0 to 1"),
        ("name.first=x", "override 'name.first' goes through 'name', which holds a plain value: got 'like'"),
    ],
)
def test_an_override_that_cannot_be_applied_says_why(file, override, message):
    with pytest.raises(RecipeError) as error:
        Recipe.read(file, [override])
    assert str(error.value) == message


def test_a_misspelt_override_is_an_unknown_key_of_the_file(file):
    with pytest.raises(RecipeError) as error:
        Recipe.read(file, ["train.epoch=3"])
    assert str(error.value).startswith(f"{file}: unknown key 'train.epoch': got epoch; expected accumulate, ")
    assert str(error.value).endswith("did you mean 'epochs'?")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty or not a mapping: got nothing; expected keys such as name: and data:; genre recipe new writes one"),
        ("- a\n- b", "is empty or not a mapping: got a list"),
        ("a: [1", "is not YAML: got "),
        (b"\xff\xfe\x00", "cannot be read: got "),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as error:
        Recipe.read(path)
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="no recipe .*none.yaml: name a YAML file"):
        Recipe.read(tmp_path / "none.yaml")


REVIEWS = {"name": "reviews", "data": {"path": "x"}, "tasks": [{"name": "good", "kind": "text", "label": "recommended"}]}


def test_a_recipe_of_texts_splits_by_group_and_survives_its_dump():
    recipe = Recipe.parse(REVIEWS)
    assert recipe.reads == "texts" and recipe.data.split.kind == "group" and recipe.sequence.instruction == ""
    assert Recipe.parse(yaml.safe_load(recipe.dump())) == recipe
    asked = Recipe.parse(REVIEWS | {"sequence": {"instruction": "A review:", "pool": "first"}})
    assert (asked.sequence.instruction, asked.sequence.pool) == ("A review:", "first")
    assert Recipe.parse(REVIEWS | {"tasks": [{"name": "n", "kind": "next_item"}]}).reads == "log"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": {"path": "x", "max_events": 5}}, "data.max_events does not apply to labelled texts"),
        ({"sequence": {"item": "text"}}, "sequence.item does not apply to labelled texts"),
        ({"encoder": {"use": "none"}}, "encoder.use does not apply to labelled texts"),
        ({"data": {"path": "x", "split": {"kind": "temporal"}}}, "'temporal' does not go with these tasks: they need group"),
        (
            {"tasks": [*REVIEWS["tasks"], {"name": "n", "kind": "next_item"}]},
            "tasks of kind text cannot be mixed with other kinds",
        ),
        ({"tasks": [{"name": "n", "kind": "next_item"}], "sequence": {"pool": "mean"}}, "sequence.pool does not apply to a log"),
        (
            {"tasks": [{"name": "n", "kind": "next_item"}], "data": {"path": "x", "split": {"kind": "group"}}},
            "'group' does not go with these tasks: they need temporal, last_n",
        ),
    ],
)
def test_texts_and_logs_do_not_mix(changed, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.parse(REVIEWS | changed)


def test_a_recipe_without_codes_does_not_mention_them():
    assert not any(f"{key}:" in Recipe.parse(PLAIN).dump() for key in ("codes", "start", "preference", "group", "beam"))
    generate = {"name": "next_item", "kind": "next_item", "head": "generate"}
    made = Recipe.parse(changed("encoder.codes", {"size": 64}) | {"tasks": [generate]})
    assert Recipe.parse(yaml.safe_load(made.dump())) == made and made.encoder.codes.size == 64


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"codes": {"features": ["factors"]}}, "encoder.codes.features names factors, which the encoder does not have"),
        ({"text": False, "collaborative": 0, "codes": {}}, "encoder.codes needs text, collaborative, factors or dense"),
        ({"codes": {}}, "encoder.codes needs a task with head 'generate': the vectors of codes train with the adapter that fits"),
        ({"codes": {"size": 1}}, "recipe: encoder.codes.size: got 1"),
        ({"codes": {"levls": 2}}, "did you mean 'levels'?"),
    ],
)
def test_codes_that_cannot_be_made_are_refused(encoder, message):
    assert message in refused(changed("encoder", encoder))


@pytest.mark.parametrize(
    ("items", "given", "shape"),
    [
        (4_385, {}, (2, 64)),
        (12_101, {}, (2, 128)),
        (1_000_000, {}, (3, 128)),
        (1_000_000, {"levels": 4}, (4, 32)),
        (30, {"size": 256}, (2, 256)),
        (1, {}, (2, 2)),
    ],
)
def test_codes_take_their_shape_from_the_number_of_items(items, given, shape) -> None:
    assert CodesConfig(**given).shape(items) == shape
