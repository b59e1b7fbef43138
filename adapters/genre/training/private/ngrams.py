"""Neighbours by words of public texts: item-to-item similarities that are of no event.

Owns: the strongest neighbours of each item by TF-IDF weights of words and pairs of words. Ignores: which head adds them, and how
much they count.

The table has the form of a co-occurrence table (`genre.modules.heads.neighbours`), so that whatever scores, exports or serves the
one serves the other. Whitened text vectors say that two items are alike; n-grams say that both titles have the same rare words.
Time grows with the square of the catalogue: two seconds for 12,000 titles.
"""

import numpy as np
import torch
from torch import Tensor

from genre.evaluation.item_models import nearest


def ngram_neighbours(texts: list[str], count: int) -> tuple[Tensor, Tensor]:
    """The `count` nearest neighbours of each of N items by the cosine of their texts' n-grams.

    Args:
        texts: N texts; an empty one is near to none.
        count: At most N - 1 are found.

    Returns:
        (N, count) int64 items, nearest first, and (N, count) float32 cosines; 0 and 0 where an item has fewer.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    items, values = torch.zeros(len(texts), count, dtype=torch.int64), torch.zeros(len(texts), count)
    fewest = 2 if len(texts) > 100 else 1
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=fewest, token_pattern=r"\w+", dtype=np.float32)
    try:
        features = words.fit_transform(texts).tocsr()
    except ValueError:  # no word is in enough of the texts
        return items, values
    similar = nearest(features, features.T.tocsr(), count)
    for item, (start, stop) in enumerate(zip(similar.indptr[:-1].tolist(), similar.indptr[1:].tolist(), strict=True)):
        order = np.lexsort((similar.indices[start:stop], -similar.data[start:stop]))
        items[item, : stop - start] = torch.from_numpy(similar.indices[start:stop][order].astype(np.int64))
        values[item, : stop - start] = torch.from_numpy(similar.data[start:stop][order])
    return items, values
