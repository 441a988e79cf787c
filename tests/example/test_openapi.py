"""The example serves the document of the package's routes."""

import requests

from example_app import ROUTES
from flask_mythic_clients import openapi_document

from .conftest import Example


def test_the_document_is_served_beside_the_route_it_describes(server: Example) -> None:
    served = requests.get(f"{server.url}/api/v1/openapi.json", timeout=10)
    assert (served.status_code, served.headers["Content-Type"]) == (200, "application/json")
    assert served.json() == openapi_document(routes=ROUTES)
    path = next(path for path, methods in served.json()["paths"].items() if "delete" in methods)
    answer = requests.delete(f"{server.url}{path.format(id='demo-1')}", timeout=10)
    assert answer.status_code == 401


def test_the_document_has_the_routes_that_the_environment_opens(example: Example) -> None:
    example.environment["MYTHIC_CLIENTS_ROUTES"] = "delete,status"
    example.start()
    served = requests.get(f"{example.url}/api/v1/openapi.json", timeout=10)
    assert served.json() == openapi_document(routes=["delete", "status"])
