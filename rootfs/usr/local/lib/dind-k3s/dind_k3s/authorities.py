"""Certificates of the user's own authorities, /certs.d/*.crt, in the bundle that everything in here reads.

Behind a line that marks where ours begin, so that a start replaces what an earlier one added, and removes what is gone.
"""

from __future__ import annotations

import re

from dind_k3s.plan import Mistake, Plan
from dind_k3s.root import at

FOLDER = "/certs.d"
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
MARK = "# From here on: certificates of /certs.d, written at each start.\n"
OTHER_ENDINGS = (".pem", ".cer", ".cert", ".der", ".crt")  # the last one in upper case
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def certificates(file: str) -> list[str]:
    """The certificates in a PEM file. Mistake when there is none, or one that cannot be read."""
    import ssl  # a tenth of the start's own time, for what few ask for

    try:
        found = _CERTIFICATE.findall(at(file).read_text())
        for certificate in found:
            ssl.create_default_context(cadata=certificate)
    except (ValueError, ssl.SSLError):  # the latter is an OSError, too
        found = []
    except OSError as error:
        raise Mistake(f"{file} cannot be read: {error.strerror}") from None
    if not found:
        raise Mistake(f"{file} holds no certificate in PEM (-----BEGIN CERTIFICATE-----), or a broken one")
    return found


def is_stray(name: str) -> bool:
    """Whether a file's name is a certificate's, and not as we read them."""
    return name.lower().endswith(OTHER_ENDINGS) and not name.endswith(".crt")


def plan() -> Plan:
    """The bundle, when it has to change."""
    made = Plan()
    files = sorted(file.name for file in at(FOLDER).glob("*.crt"))
    strays = [file.name for file in sorted(at(FOLDER).glob("*")) if is_stray(file.name)]
    if strays:
        made.messages.append(
            f"warning: {', '.join(strays)} in {FOLDER} is not trusted: expected are files named *.crt, with"
            " certificates in PEM; rename it"
        )
    added = [certificate for name in files for certificate in certificates(f"{FOLDER}/{name}")]
    bundle = at(BUNDLE)
    old = bundle.read_text() if bundle.exists() else ""
    new = old.partition(MARK)[0] + (MARK + "\n".join(added) + "\n" if added else "")
    if new != old:
        made.files[BUNDLE] = new
    if added:
        made.messages.append(f"{len(added)} certificates of {FOLDER} are trusted: {', '.join(files)}")
    return made
