"""A Flower app that trains a GENRE recipe where the data is; docs/federated.md says how it is started.

`like.yaml` beside this file is the recipe; `pyproject.toml` has the settings of a run.
"""

from genre.jobs.federated.flower import make_client_app, make_server_app

server = make_server_app(__file__)
client = make_client_app()
