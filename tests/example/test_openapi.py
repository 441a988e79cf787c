"""The example serves the document of the package's route."""

import requests

from flask_mythic_clients import openapi_document

from .conftest import Example


def test_the_document_is_served_beside_the_route_it_describes(server: Example) -> None:
    served = requests.get(f"{server.url}/api/v1/openapi.json", timeout=10)
    assert (served.status_code, served.headers["Content-Type"]) == (200, "application/json")
    assert served.json() == openapi_document()
    [path] = served.json()["paths"]
    answer = requests.delete(f"{server.url}{path.format(id='demo-1')}", timeout=10)
    assert answer.status_code == 401
