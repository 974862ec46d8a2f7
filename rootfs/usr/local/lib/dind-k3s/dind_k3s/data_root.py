"""data-root [DOCKERD ARGUMENT…]: where dockerd is going to keep everything, as DOCKER_ARGS or a daemon.json say.

Asked before anything else, because that folder is locked, probed and remembered in. What is wrong with the arguments is
told later, by configure.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from dind_k3s import dockerd, user_files
from dind_k3s.plan import Mistake, words

DEFAULT = "/var/lib/docker"
FLAGS = ("--data-root", "--graph", "-g")


def find(env: Mapping[str, str], extra: Sequence[str]) -> str:
    try:
        args, file = dockerd.take_config_file([*words("DOCKER_ARGS", env), *extra])
        found = user_files.read_object(file)[0].get("data-root")
    except Mistake:
        return DEFAULT
    for position, arg in enumerate(args):
        flag, is_pair, value = arg.partition("=")
        if flag in FLAGS:
            found = value if is_pair else next(iter(args[position + 1 :]), None)
        elif arg.startswith("-g") and not arg.startswith("--"):
            found = arg[2:]
    return str(PurePosixPath("/", found)) if isinstance(found, str) and found else DEFAULT


def main() -> int:
    sys.stdout.buffer.write(os.fsencode(find(os.environ, sys.argv[1:])))  # a path need not be UTF-8
    return 0


if __name__ == "__main__":
    sys.exit(main())
