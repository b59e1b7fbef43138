"""The HTTP service: micro-batches over one engine, operated by name, observed, followed by a page.

Owns: queues, deployments, the canary, metrics, logs; `http` has everything that is HTTP. Ignores: arithmetic.

>>> from genre.serving import Service, Settings, create_app
"""

from genre.serving.http.app import create_app
from genre.serving.service import Service
from genre.serving.settings import Settings

__all__ = ["Service", "Settings", "create_app"]
