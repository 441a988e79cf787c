"""The answers of the wire contract, said by hand: contestants give them, the load wants them."""

from typing import Any

NO_STORE = {"Cache-Control": "no-store"}
DELETED: dict[bool, dict[str, Any]] = {
    hard: {"success": True, "deleted": True, "hard": hard} for hard in (False, True)
}
UNAUTHORIZED = {
    "error": "Unauthorized",
    "message": "Authentication required. Please provide a valid API token",
    "code": 401,
}
NOT_FOUND = {"error": "Not Found", "message": "The requested resource was not found", "code": 404}
