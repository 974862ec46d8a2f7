"""Failures of the API as `Status` objects (kubernetes: staging/src/k8s.io/apimachinery/pkg/apis/meta/v1)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

# A Kubernetes object is JSON; its fields are the business of the modules that use them.
Object = dict[str, Any]


class ApiError(Exception):
    """A request that cannot be answered, with its HTTP code."""

    def __init__(self, code: int, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason or HTTPStatus(code).phrase.replace(" ", "")

    def to_object(self) -> Object:
        """The answer's body."""
        body: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        return {**body, "message": str(self), "reason": self.reason, "code": self.code}
