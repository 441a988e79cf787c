"""The floor: what Flask and the server in front of it cost alone."""

from flask import Flask, Response

METADATA = None


def create_app() -> Flask:
    """Return the app."""
    app = Flask("host")

    @app.delete("/api/v1/clients/<client_id>")
    def delete_client(client_id: str) -> Response:  # noqa: ARG001
        return Response("{}", mimetype="application/json")

    return app
