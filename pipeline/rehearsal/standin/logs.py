"""`kubectl logs`: a container's output, as dockerd kept it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from . import containers
from .engine import Engine, EngineGone, EngineRefused, frames
from .status import ApiError, Object

if TYPE_CHECKING:
    from .api import Handler


def container_name(pod: Object, asked: str) -> str:
    """The container that is meant: the named one, the annotated one, or the only one."""
    names = [spec["name"] for field in ("containers", "initContainers") for spec in pod["spec"].get(field) or []]
    wanted = asked or (pod["metadata"].get("annotations") or {}).get("kubectl.kubernetes.io/default-container", "")
    if not wanted and len(pod["spec"]["containers"]) == 1:
        return str(names[0])
    if wanted not in names:
        problem = f"container {wanted} is not valid for" if wanted else "a container name must be specified for"
        raise ApiError(400, f"{problem} pod {pod['metadata']['name']}, choose one of: {names}")
    return wanted


def find(engine: Engine, pod: Object, name: str, *, previous: bool = False) -> Object:
    """The newest attempt of a container, or the one before, as dockerd inspects it."""
    labels = [f"{containers.POD_UID}={pod['metadata']['uid']}", f"{containers.CONTAINER_NAME}={name}"]
    try:
        entries = engine.call("GET", "/containers/json", all=True, filters={"label": labels})
        entries.sort(key=lambda entry: int(entry["Labels"].get(containers.ATTEMPT, "0")), reverse=True)
        at = 1 if previous else 0
        if len(entries) <= at:
            what = "previous terminated container" if previous else "container"
            where = f'pod "{pod["metadata"]["name"]}"'
            raise ApiError(
                400, f'{what} "{name}" in {where} is not there' + ("" if previous else ": it waits to start")
            )
        inspected: Object = engine.call("GET", f"/containers/{entries[at]['Id']}/json")
    except (EngineGone, EngineRefused) as error:
        raise ApiError(503, f"dockerd: {error}") from None
    return inspected


class Logs:
    """Answers requests for pods/log."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, handler: Handler, pod: Object, query: dict[str, list[str]]) -> None:
        """Send the log, and with `follow` all that comes after it."""
        asked = {key: values[-1] for key, values in query.items()}
        name = container_name(pod, asked.get("container", ""))
        inspected = find(self._engine, pod, name, previous=asked.get("previous") == "true")
        options: dict[str, Any] = {"stdout": True, "stderr": True, "tail": asked.get("tailLines") or "all"}
        options["follow"] = asked.get("follow") == "true"
        options["timestamps"] = asked.get("timestamps") == "true"
        if asked.get("sinceSeconds"):
            options["since"] = int(datetime.now().timestamp()) - int(asked["sinceSeconds"])
        elif asked.get("sinceTime"):
            options["since"] = int(datetime.fromisoformat(asked["sinceTime"].replace("Z", "+00:00")).timestamp())
        output = self._read(inspected, options)
        if asked.get("limitBytes"):
            output = _limited(output, int(asked["limitBytes"]))
        handler.send_stream("text/plain", output)

    def _read(self, inspected: Object, options: dict[str, Any]) -> Iterator[bytes]:
        try:
            pieces = self._engine.stream("GET", f"/containers/{inspected['Id']}/logs", **options)
            if inspected["Config"].get("Tty"):
                yield from pieces
            else:
                for _, text in frames(pieces):
                    yield text
        except (EngineGone, EngineRefused) as error:
            yield f"\nthe log ends here: {error}\n".encode()


def _limited(output: Iterator[bytes], limit: int) -> Iterator[bytes]:
    for piece in output:
        yield piece[:limit]
        limit -= len(piece)
        if limit <= 0:
            return
