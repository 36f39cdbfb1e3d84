"""The gateway: a server that speaks Algorithmia's API."""

from free_ml_stack.gateway.hosted import asgi_app
from free_ml_stack.gateway.serve import serve_project

__all__ = ["asgi_app", "serve_project"]
