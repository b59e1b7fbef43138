"""The HTTP service: micro-batches over one engine, operated by name, observed, followed by a page.

Owns: bodies, limits, queues, who is served, the canary, metrics, logs. Ignores: arithmetic.

>>> from genre.serving import Service, Settings, create_app
"""

from genre.serving.app import create_app
from genre.serving.service import Service
from genre.serving.settings import Settings

__all__ = ["Service", "Settings", "create_app"]
