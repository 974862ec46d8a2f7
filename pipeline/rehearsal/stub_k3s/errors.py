"""Expected failures: of the program, of one request to the API, of the start of one container."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

# A Kubernetes object is JSON; its fields are the business of the modules that use them.
Object = dict[str, Any]


class Failure(Exception):
    """An error that the user can correct. The exit code is 1, as for every failure of k3s."""


class ApiError(Exception):
    """A request that fails, with its HTTP code."""

    def __init__(self, code: int, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason or HTTPStatus(code).phrase.replace(" ", "")

    def to_object(self) -> Object:
        """Return the answer's body, a `Status` (k8s.io/apimachinery/pkg/apis/meta/v1)."""
        body: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        return {**body, "message": str(self), "reason": self.reason, "code": self.code}


class Waiting(Exception):
    """A container that cannot be started now, with the kubelet's reason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
