import numpy as np
import polars as pl
import pytest

from genre.data.catalogue import Catalogue, hash_frame
from genre.errors import DataError

FRAME = pl.DataFrame(
    {
        "item_id": ["7", "8", "9"],
        "title": ["Toy Story", " ", None],
        "year": [1995, None, 1996],
        "genres": [["Animation", "Comedy"], ["Drama"], None],
        "vector": [[1.0, 2.0], None, [3.0, 4.5]],
        "ragged": [[1.0], [1.0, 2.0], [1.0]],
        "broken": [[1.0], [float("nan")], [1.0]],
    }
)


def test_codes_and_ids():
    items = Catalogue(FRAME)
    assert len(items) == items.size == 3 and items.item_ids == ["7", "8", "9"]
    assert items.code("9") == 2 and "9" in items and "x" not in items
    codes = items.codes(["9", "7"])
    assert codes.dtype == np.int32 and codes.tolist() == [2, 0]
    with pytest.raises(DataError) as caught:
        items.code("x")
    assert str(caught.value) == (
        "unknown item: got 'x'; expected an id of the catalogue (3 items, such as 7, 8, 9); give a known item_id, or "
        "the item itself"
    )


def test_texts_leave_out_what_is_empty():
    items = Catalogue(FRAME)
    assert items.texts(["title", "year", "genres"]) == ["Toy Story; 1995; Animation, Comedy", "Drama", "1996"]
    assert items.texts(["title"]) == ["Toy Story", "", ""] and items.texts([]) == ["", "", ""]
    assert items.texts(["title", "year"], separator=" ")[0] == "Toy Story 1995"
    assert items.titles() == ["Toy Story", "8", "9"]
    with pytest.raises(DataError, match="the catalogue has no column 'name': got item_id, title, year"):
        items.texts(["name"])
    with pytest.raises(DataError, match="column 'vector' is not text"):
        items.texts(["vector"])


def test_dense_columns():
    items = Catalogue(FRAME)
    dense = items.dense("vector")
    assert dense.dtype == np.float32 and dense.tolist() == [[1, 2], [0, 0], [3, 4.5]]
    assert items.dense("year").tolist() == [[1995], [0], [1996]]
    fixed = Catalogue(pl.DataFrame({"item_id": ["a"], "v": pl.Series([[1, 2]], dtype=pl.Array(pl.Int64, 2))}))
    assert fixed.dense("v").tolist() == [[1, 2]]
    empty = Catalogue(pl.DataFrame({"item_id": ["a"], "v": pl.Series([None], dtype=pl.List(pl.Float64))}))
    assert empty.dense("v").shape == (1, 0)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("ragged", "column 'ragged' is ragged: got 1 to 2 numbers; expected one length"),
        ("broken", "column 'broken' has values that are not finite: got item 8 and 0 more; expected finite numbers"),
        ("title", "column 'title' is not dense: got String; expected numbers or lists of numbers"),
    ],
)
def test_dense_refuses(column, message):
    with pytest.raises(DataError) as caught:
        Catalogue(FRAME).dense(column)
    assert str(caught.value) == message


@pytest.mark.parametrize("ids", [["a", "a"], ["a", None], [1, 2]])
def test_unusable_ids_are_refused(ids):
    with pytest.raises(DataError, match="item ids are not usable"):
        Catalogue(pl.DataFrame({"item_id": ids}))


def test_hash_sees_values_order_nulls_and_types_but_not_chunks():
    frame = FRAME.select("item_id", "title", "year", "genres", "vector")
    chunked = pl.concat([frame[:1], frame[1:]], rechunk=False)
    assert hash_frame(frame) == hash_frame(chunked)
    changed = [
        frame.reverse(),
        frame.with_columns(pl.col("year").fill_null(0)),
        frame.with_columns(pl.col("title").fill_null("")),
        frame.with_columns(pl.col("year").cast(pl.Float64)),
        frame.rename({"title": "name"}),
        frame.with_columns(vector=pl.Series([[1.0], [2.0], [3.0, 4.5]])),
    ]
    assert len({hash_frame(frame), *map(hash_frame, changed)}) == len(changed) + 1
    lists = pl.DataFrame({"a": [[], None, [1.0, None], [2.0]]}, schema={"a": pl.List(pl.Float64)})
    assert (
        hash_frame(lists) == "c0e53ec5f58753984485a4e1284f4ddc28031b39ad8946ae98ba35912f0a8a95"
    )  # whatever explode does with []
    assert hash_frame(pl.DataFrame({"a": ["xy", "z"]})) != hash_frame(pl.DataFrame({"a": ["x", "yz"]}))
