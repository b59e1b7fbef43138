"""docs/python.md: its blocks run in order as they stand, and call every public function."""

import ast
import inspect
import re

import pytest

import genre
from genre.modules.base import packaged, source
from standins import ROOT, deep_base

BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
INNER = {
    "Base": set(vars(genre.Base)) - {"load"},  # what a model is computed with, which Recommender and Engine call
    "Engine": {"read_by", "catalogue_of", "planned", "planned_together"},  # what explanations and vectors are made of
    "Interactions": {"labels_of", "split", "limit", "owners", "time_span", "name_row", "user_code"},  # the protocol `Dataset`
    "export": {"mlflow"},  # an extra
    "Texts": {"split", "limit", "owners", "time_span", "name_row"},
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The names that the blocks leave behind, in a fresh folder and on a small stand-in of the base."""
    folder = tmp_path_factory.mktemp("python")
    base = deep_base(folder / "base")
    known = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(packaged, "prepare_base", lambda name, *, on_step=None: base)
        patch.setattr(source, "prepare_base", lambda name: base)
        for number, block in enumerate(BLOCKS):
            exec(compile(block, f"docs/python.md, block {number + 1}", "exec"), known)
        yield known


def public_functions():
    for name in genre.__all__:
        value = getattr(genre, name)
        if inspect.isfunction(value):
            yield name, name
        elif inspect.ismodule(value):
            own = set(value.__all__) - INNER.get(name, set())
            yield from ((f"{name}.{each}", each) for each in own if inspect.isroutine(getattr(value, each)))
        elif inspect.isclass(value):
            for method, found in vars(value).items():
                called = isinstance(found, classmethod | staticmethod) or inspect.isfunction(found)
                if called and not method.startswith("_") and method not in INNER.get(name, ()):
                    yield f"{name}.{method}", method


def test_every_public_function_is_called_in_an_example():
    trees = [ast.parse(block) for block in BLOCKS]
    called = {
        node.func.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    wanted = dict(public_functions())
    assert len(wanted) > 45
    assert not {name for name, method in wanted.items() if method not in called}


def test_the_examples_do_what_their_comments_say(ran):
    log, table, few, found = (ran[name] for name in ("log", "table", "few", "found"))
    assert log.info.name == "cinema" and ran["facts"]["users"] == 40 and len(ran["liked"]) < len(log) == 640
    assert table.height == 120 and table.columns == ["user_id", "rank", "item_id", "title", "score", "probability"]
    assert set(few["title"].str.slice(0, 5)) == {"Crime"} and type(few).__module__.startswith("pandas")
    assert ran["registry"].aliases("like")["production"] == ran["version"].version != ran["candidate"].version
    assert ran["registry"].resolve("next_item").manifest.encoder == ran["version"].manifest.encoder
    assert {"adapter", "additive"} <= set(found.frame["scorer"])
    assert ran["unnamed"].version not in ran["registry"].versions("like") and ran["registry"].verify() == []
