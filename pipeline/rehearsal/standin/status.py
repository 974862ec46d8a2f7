"""Failures of the API as `Status` objects (kubernetes: staging/src/k8s.io/apimachinery/pkg/apis/meta/v1)."""

from __future__ import annotations

from typing import Any

# A Kubernetes object is JSON; its fields are the business of the modules that use them.
Object = dict[str, Any]

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    500: "InternalError",
    501: "NotImplemented",
    503: "ServiceUnavailable",
}


class ApiError(Exception):
    """A request that cannot be answered, with its HTTP code."""

    def __init__(self, code: int, message: str, *, reason: str | None = None, details: Object | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason or _REASONS.get(code, "Unknown")
        self.details = details

    def to_object(self) -> Object:
        """The answer's body."""
        body: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        if self.details:
            body["details"] = self.details
        return body


def not_found(plural: str, name: str) -> ApiError:
    """No object of that name."""
    return ApiError(404, f'{plural} "{name}" not found', details={"name": name, "kind": plural})


def invalid(kind: str, name: str, field: str, why: str) -> ApiError:
    """One field of an object is wrong."""
    cause = {"reason": "FieldValueInvalid", "message": why, "field": field}
    return ApiError(
        422, f'{kind} "{name}" is invalid: {field}: {why}', details={"name": name, "kind": kind, "causes": [cause]}
    )


def success(plural: str, name: str, uid: str = "") -> Object:
    """The answer to a deletion that is done."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {"name": name, "kind": plural, "uid": uid},
    }
