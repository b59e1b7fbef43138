"""A generated film log in the public form of MovieLens' newer releases: `ratings.csv` and `movies.csv`.

userId,movieId,rating,timestamp            1,31,2.5,1260759144
movieId,title,genres                       31,"Quiet River, The (1995)",Comedy|Drama
"""

from pathlib import Path

import numpy as np
import polars as pl

GENRES = (
    "Action",
    "Adventure",
    "Comedy",
    "Crime",
    "Drama",
    "Fantasy",
    "Horror",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
FIRST = ("Quiet", "Last", "Golden", "Broken", "Lost", "Silent", "Red", "Hidden", "Bright", "Cold", "Wild", "Long")
SECOND = (
    "River",
    "Summer",
    "Promise",
    "Empire",
    "Letter",
    "Garden",
    "Witness",
    "Horizon",
    "Station",
    "Mirror",
    "Harbour",
    "Fire",
)
BEGUN, SPAN = 1_100_000_000, 300_000_000
"""The first second of the log, and how many seconds of users' first events follow it."""


def write_films(folder: Path, *, users: int, films: int, events: int, seed: int = 0) -> Path:
    """Write a log in which users keep to the genres they like, films are unequally popular, and ratings follow both.

    Args:
        folder: Made by this.
        users: At least 20 events each.
        films: All of them have a row in movies.csv; not all have an event.
        events: About so many.
        seed: The same seed writes the same bytes.
    """
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    kinds = draw.integers(len(GENRES), size=(films, 2))
    years = draw.integers(1930, 2017, size=films)
    ids = np.sort(draw.choice(20 * films, films, replace=False)) + 1
    titles = [f"{FIRST[a]} {SECOND[b]} {n}" for n, (a, b) in enumerate(draw.integers(12, size=(films, 2)))]
    titles = [
        f"{title}, The ({year})" if n % 5 == 0 else f"{title} ({year})"
        for n, (title, year) in enumerate(zip(titles, years, strict=True))
    ]
    genres = ["|".join(GENRES[kind] for kind in sorted(set(map(int, pair)))) for pair in kinds]
    pl.DataFrame({"movieId": ids, "title": titles, "genres": genres}).write_csv(folder / "movies.csv")

    popularity = 1 / (1 + draw.permutation(films)) ** 0.7
    quality = draw.normal(0, 0.5, films)
    lengths = 20 + draw.exponential(max(events / users - 20, 1), users).astype(int)
    rows = []
    for user, length in enumerate(np.minimum(lengths, films // 2), 1):
        taste = draw.dirichlet(np.full(len(GENRES), 0.3))[kinds].sum(axis=1)
        weights = popularity * (0.02 + taste)
        seen = draw.choice(films, length, replace=False, p=weights / weights.sum())
        ratings = 3.2 + draw.normal(0, 0.3) + quality[seen] + 1.5 * (taste[seen] - 0.4) + draw.normal(0, 0.6, length)
        times = BEGUN + draw.integers(SPAN) + np.cumsum(draw.integers(5, 600, size=length))
        stars = np.clip(np.round(2 * ratings) / 2, 0.5, 5)
        rows.append(pl.DataFrame({"userId": np.full(length, user), "movieId": ids[seen], "rating": stars, "timestamp": times}))
    pl.concat(rows).write_csv(folder / "ratings.csv")
    return folder
