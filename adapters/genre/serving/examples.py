"""Bodies that the OpenAPI document shows.

Owns: one for each thing that people want first. Ignores: models.
"""

from typing import Any

SCORE_EXAMPLES: dict[str, Any] = {
    "several tasks of one user": {
        "value": {
            "requests": [
                {"id": "1", "adapter": "like@production", "user_id": "196", "candidates": ["50", "181"]},
                {"id": "2", "adapter": "next_item@production", "user_id": "196", "k": 10},
            ]
        }
    },
    "a history inline, and a new film": {
        "value": {
            "requests": [
                {
                    "adapter": "like@production", "history": [{"item_id": "50", "rating": 5}],
                    "candidates": ["181", {"title": "A new film"}],
                }
            ]
        }
    },
    "a new user": {"value": {"requests": [{"adapter": "next_item@production", "history": [], "k": 10}]}},
}  # fmt: skip
RECOMMEND_EXAMPLES: dict[str, Any] = {
    "ten films for a user": {"value": {"requests": [{"adapter": "next_item@production", "user_id": "196"}]}},
    "five different films, but not that one": {
        "value": {
            "requests": [{"adapter": "next_item", "user_id": "196", "k": 5, "where": ["title != 'Toy Story'"], "diversity": 0.3}]
        }
    },
    "after two films": {
        "value": {
            "requests": [
                {"adapter": "next_item", "history": [{"item_id": "50", "rating": 5}, {"item_id": "181", "rating": 4}], "k": 5}
            ]
        }
    },
}
EXPLAIN_EXAMPLES: dict[str, Any] = {
    "why this film": {"value": {"requests": [{"adapter": "like@production", "user_id": "196", "item": "50"}]}},
    "the fast way": {
        "value": {"requests": [{"adapter": "like@production", "user_id": "196", "item": "50", "method": "gradient"}]}
    },
}
