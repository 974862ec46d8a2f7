"""What the verbs of the API do to the store."""

from __future__ import annotations

import threading
from collections.abc import Callable

from . import namespaces
from .admission import Admission
from .resources import Resource
from .selectors import Selector
from .status import ApiError, Object, success
from .store import Store, timestamp


class Rest:
    """Get, list, create, update and delete, over one store."""

    def __init__(self, store: Store, admission: Admission, ca: str) -> None:
        self.store = store
        self._admission = admission
        self._ca = ca
        self._creating = threading.Lock()  # two services must not get one address

    def find(self, resource: Resource, selector: Selector) -> tuple[list[Object], str]:
        """The selected objects and the version to watch from."""
        things, version = self.store.find(resource.plural, selector.namespace)
        return [thing for thing in things if selector.matches(thing)], str(version)

    def create(self, resource: Resource, namespace: str, thing: Object) -> tuple[Object, list[str]]:
        """Store a new object; the second value is what the client should warn of."""
        with self._creating:
            ready, warnings = self._admission.create(resource, namespace, thing)
            created = self.store.create(resource.plural, ready)
        if resource.plural == "namespaces":
            namespaces.furnish(self.store, created["metadata"]["name"], self._ca)
        return created, warnings

    def update(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        change: Callable[[Object], Object],
        *,
        subresource: str = "",
    ) -> Object:
        """Store a changed object; its status changes through the subresource `status` only."""

        def checked(before: Object) -> Object:
            after = change(before)
            if not isinstance(after.get("metadata"), dict) or after["metadata"].get("name", name) != name:
                raise ApiError(400, "the name of the object does not match the name in the URL")
            if subresource == "status":
                metadata = {**before["metadata"], "resourceVersion": after["metadata"].get("resourceVersion")}
                return {**before, "metadata": metadata, "status": after.get("status", {})}
            return self._admission.update(resource, before, after)

        return self.store.modify(resource.plural, namespace, name, checked)

    def delete(self, resource: Resource, namespace: str, name: str, options: Object) -> Object:
        """Delete an object, or begin to: pods and namespaces take their time."""
        thing = self.store.get(resource.plural, namespace, name)
        uid = thing["metadata"]["uid"]
        wanted = (options.get("preconditions") or {}).get("uid")
        if wanted not in (None, uid):
            raise ApiError(409, f'{resource.plural} "{name}" has another uid than the one to delete: {uid}')
        if resource.plural == "pods":
            return namespaces.delete_pod(self.store, thing, grace=options.get("gracePeriodSeconds"))
        if resource.plural == "namespaces":
            if name in namespaces.INITIAL[:3]:
                raise ApiError(403, f'namespaces "{name}" is forbidden: this namespace may not be deleted')
            return self.store.modify("namespaces", "", name, _terminating)
        self.store.delete(resource.plural, namespace, name)
        return success(resource.plural, name, uid)


def _terminating(namespace: Object) -> Object:
    namespace["metadata"].setdefault("deletionTimestamp", timestamp())
    namespace["status"] = {"phase": "Terminating"}
    return namespace
