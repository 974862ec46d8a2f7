"""Credentials for a registry, as `docker login` stores them, and the two schemes of registries to request them.

Sources: distribution's docs/spec/auth/token.md (Bearer challenge), RFC 7617 (Basic), and docker's config.json as
docker/cli documents it. Secrets never appear in a message or a repr.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.errors import RegistryError

# The key of Docker Hub is the address of its first API.
_HUB_KEY = "https://index.docker.io/v1/"
_HELPER_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A user name and a password or access token."""

    username: str
    password: str = field(repr=False)

    @property
    def basic(self) -> str:
        """The value of an Authorization header, scheme Basic."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()

    @classmethod
    def from_docker_config(cls, registry: str, config_dir: Path) -> Credentials | None:
        """Return a registry's credentials from docker's config.json, or from its credential helper if one is set.

        None without a login. Raises RegistryError if the file or the helper is broken.
        """
        path = config_dir / "config.json"
        key = _HUB_KEY if registry == "docker.io" else registry
        try:
            config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            # The parser's message could quote a secret in the file.
            raise _unusable(f"{path} cannot be read", registry, error) from None
        helpers = config.get("credHelpers", {})
        if helper := helpers.get(key) or helpers.get(registry) or config.get("credsStore"):
            return cls._from_helper(helper, key, registry)
        entry = config.get("auths", {}).get(key, {})
        if entry.get("identitytoken"):
            raise _identity_token(registry)
        if not entry.get("auth"):
            return None
        try:
            username, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        except ValueError:
            raise _unusable(f"the entry of {registry} in {path} is not base64", registry) from None
        return cls(username=username, password=password.rstrip("\0"))

    @classmethod
    def _from_helper(cls, helper: str, key: str, registry: str) -> Credentials | None:
        """Run `docker-credential-<helper> get`; its protocol is in docker/docker-credential-helpers."""
        program = f"docker-credential-{helper}"
        try:
            done = subprocess.run(
                [program, "get"], input=key, capture_output=True, text=True, timeout=_HELPER_SECONDS, check=False
            )
            if "credentials not found" in done.stdout:
                return None
            entry = json.loads(done.stdout)
            credentials = cls(username=entry["Username"], password=entry["Secret"])
        except (OSError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
            raise _unusable(f"{program} returned no credentials for {registry}", registry, error) from None
        if credentials.username == "<token>":
            raise _identity_token(registry)
        return credentials


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """The challenge in WWW-Authenticate: how a registry requests credentials."""

    scheme: str  # `bearer` or `basic`
    realm: str  # of bearer: the URL of the token server
    service: str

    @classmethod
    def of(cls, headers: Sequence[str]) -> Challenge | None:
        """Return the best challenge of the WWW-Authenticate headers; None if no scheme is supported."""
        challenges: dict[str, Challenge] = {}
        for header in headers:
            scheme, _, rest = header.strip().partition(" ")
            words = {
                name.lower(): quoted or bare
                for name, quoted, bare in re.findall(r'(\w+)\s*=\s*(?:"([^"]*)"|([^\s,"]+))', rest)
            }
            challenges[scheme.lower()] = cls(
                scheme=scheme.lower(), realm=words.get("realm", ""), service=words.get("service", "")
            )
        return challenges.get("bearer") or challenges.get("basic")


def _unusable(summary: str, registry: str, error: Exception | None = None) -> RegistryError:
    found = type(error).__name__ if error else None
    return RegistryError(summary, found=found, next_step=f"docker login {registry}")


def _identity_token(registry: str) -> RegistryError:
    return RegistryError(
        f"docker holds an identity token for {registry}, which cannot be used here",
        expected="a user name with a password or access token",
        next_step=f"docker login --username USER --password-stdin {registry}",
    )
