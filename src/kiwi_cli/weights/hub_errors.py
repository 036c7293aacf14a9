"""What can go wrong with the Hub, in words for the person: one table, by exception type.

The client wraps what happened in several layers, and uses one of two HTTP libraries depending on its version;
both are found through its own classes.
"""

from __future__ import annotations

import errno
import os
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from types import ModuleType
from typing import Any, TypeVar

from kiwi_cli.errors import CheckpointError, KiwiError, NoSuchModelError
from kiwi_cli.weights.catalog import VARIANTS, find_variant

Result = TypeVar("Result")

RETRIES = 4
FIRST_WAIT = 1.0  # seconds; doubles with each try
LONGEST_WAIT = 60.0
RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # the client obeys both

AGAIN = "run the same command again; what is complete is kept"
DETAILS = "KIWI_DEBUG=1 shows where that happened"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and what it was raised from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def http_library() -> ModuleType:
    """The HTTP library that the installed client uses, for its exception types."""
    from huggingface_hub.errors import HfHubHTTPError

    base = next(cls for cls in HfHubHTTPError.__mro__ if cls.__name__ == "HTTPError")
    return sys.modules[base.__module__.partition(".")[0]]


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an exception, or what it was raised from, carries."""
    for link in chain(error):
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def explain(error: BaseException, repo: str, revision: str = "main", where: str = "") -> KiwiError:
    """The failure of a request or a download, as a message and a hint."""
    from huggingface_hub import errors as hub

    http = http_library()
    table: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str, str], ...] = (
        (
            hub.GatedRepoError,
            f"'{repo}' is gated: its authors want you to accept terms first",
            f"accept them at https://huggingface.co/{repo}, then {LOG_IN}",
        ),
        (
            hub.RevisionNotFoundError,
            f"'{repo}' has no revision '{revision}'",
            f"pass a branch, tag or commit of https://huggingface.co/{repo}/commits with --revision",
        ),
        (hub.DisabledRepoError, f"the Hub has disabled '{repo}'", "choose another model with --model"),
        (
            hub.RepositoryNotFoundError,
            f"no repository '{repo}' on the Hub, or it is private",
            _or_private(repo),
        ),
        (
            hub.RemoteEntryNotFoundError,
            f"a file of '{repo}' is no longer on the Hub: it changed meanwhile",
            AGAIN,
        ),
        (hub.OfflineModeIsEnabled, *offline(repo, offline_variable() or OFFLINE[0])),
        (
            ssl.SSLError,
            f"the connection to the Hub cannot be trusted: {_reason(error, ssl.SSLError)}",
            "behind a company's proxy, point SSL_CERT_FILE at its certificate",
        ),
        (
            http.ProxyError,
            f"the proxy refused the connection to the Hub: {_reason(error, http.ProxyError)}",
            "check HTTPS_PROXY and NO_PROXY",
        ),
        (http.TimeoutException, "the Hub does not answer", f"check the network, then {AGAIN}"),
        (
            (http.NetworkError, http.RemoteProtocolError),
            f"cannot reach the Hub: {_reason(error, (http.NetworkError, http.RemoteProtocolError))}",
            f"check the network, then {AGAIN}",
        ),
    )
    links = list(chain(error))
    if status_of(error) == 401 and (refused := _refused_token(links)) is not None:
        return CheckpointError(f"the Hub does not accept the token for '{repo}'{refused}", LOG_IN)
    for kinds, message, hint in (*_lasting(links), *table):
        if any(isinstance(link, kinds) for link in links):
            ours = find_variant(repo)  # then it is the Hub's fault, and no name is wrong
            named = (kinds is hub.RepositoryNotFoundError and ours is None) or (
                kinds is hub.RevisionNotFoundError and (ours is None or revision != ours.revision)
            )
            return NoSuchModelError(message, hint) if named else CheckpointError(message, hint)
    return _by_status(error, repo) or _by_errno(links, repo, where) or _unknown(links, repo)


def _lasting(links: list[BaseException]) -> list[tuple[type[BaseException], str, str]]:
    """What no second try mends: (type, message, hint), for whichever of the links it is."""
    import json

    http = http_library()
    endpoint = os.environ.get("HF_ENDPOINT", "")
    rows: list[tuple[type[BaseException], str, str]] = []
    for link in links:
        text = str(link).strip().partition("\n")[0]
        if "socks" in text.lower() and isinstance(link, (ImportError, ValueError, http.TransportError)):
            rows.append(
                (type(link), f"the proxy cannot be used: {text}", "pip install 'httpx[socks]', or use an HTTP proxy")
            )
        elif isinstance(link, (http.UnsupportedProtocol, http.InvalidURL)) or "scheme" in text.lower():
            named = f"HF_ENDPOINT is '{endpoint}'" if endpoint else text
            rows.append(
                (type(link), f"not an address: {named}", "write it with its scheme, as in https://huggingface.co")
            )
        elif isinstance(link, json.JSONDecodeError):
            what = "what answered is not the Hub, or something on the way replaced the answer"
            rows.append((type(link), what, "log in to this network in a browser, and check HF_ENDPOINT"))
        elif isinstance(link, NotImplementedError) or getattr(link, "errno", None) in (errno.ENOLCK, errno.ENOSYS):
            what = "this disk has no file locks, which the Hub's cache needs"
            rows.append((type(link), what, "set HF_HOME to a folder on a local disk"))
    return rows


def _refused_token(links: list[BaseException]) -> str | None:
    """What the Hub says of the token that it was sent, with a colon before; None when it was sent none.

    To strangers the Hub answers 401 for whatever is private or not there; to those with a good token it does not.
    """
    for link in links:
        response = getattr(link, "response", None)
        if response is None:
            continue
        said = str(response.headers.get("X-Error-Message") or "")
        sent = getattr(getattr(response, "request", None), "headers", {}).get("Authorization")
        if sent or "Invalid credentials" in said:
            return f": {said}" if said and "Invalid credentials" not in said else ""
    return None


def offline_variable() -> str | None:
    """The variable that forbids requests, as the client reads it; None when nothing does."""
    return next((name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), None)


def offline(repo: str, variable: str) -> tuple[str, str]:
    """The message and the hint for a model that is missing while requests are forbidden."""
    return (
        f"'{repo}' is not complete on this machine and {variable} is set",
        f"unset {variable} and run `kiwi download` once",
    )


_STATUS = {
    403: ("the Hub refuses access to '{repo}'", f"check that the token may read it, or {LOG_IN}"),
    404: ("no repository '{repo}' on the Hub, or it is private", ""),
    429: ("the Hub asks for fewer requests", f"wait a few minutes, then {AGAIN}; logging in raises the limit"),
}


def _by_status(error: BaseException, repo: str) -> KiwiError | None:
    status = status_of(error)
    if status is None:
        return None
    if status == 401:
        status = 404  # what the Hub answers to strangers for what is private or not there
    message, hint = _STATUS.get(status, (f"the Hub failed with status {status} for '{{repo}}'", AGAIN))
    return CheckpointError(message.format(repo=repo), hint or _or_private(repo))


def _or_private(repo: str) -> str:
    """For a repository that is not there: the nearest that is, or how to log in."""
    if find_variant(repo) is None and (
        close := get_close_matches(repo, [v.repo for v in VARIANTS if v.repo], n=1, cutoff=0.8)
    ):
        return f"did you mean '{close[0]}'?"
    return f"check the name; for a private one, {LOG_IN}"


ELSEWHERE = "set HF_HOME to another folder"
_ERRNO = {
    errno.ENOSPC: ("the disk is full", "free some space, or set HF_HOME to a folder on another disk"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or set HF_HOME to a folder on another disk"),
    errno.EACCES: ("no right to write there", ELSEWHERE),
    errno.EPERM: ("no right to write there", ELSEWHERE),
    errno.EROFS: ("the disk cannot be written to", ELSEWHERE),
    errno.EFBIG: ("the disk takes no file of that size (FAT32 ends at 4 GB)", ELSEWHERE),
    errno.ENOTDIR: ("a file is in the way where a folder should be", ELSEWHERE),
    errno.EEXIST: ("a file is in the way where a folder should be", ELSEWHERE),
}


def _by_errno(links: list[BaseException], repo: str, where: str) -> KiwiError | None:
    for link in links:
        if isinstance(link, OSError) and link.errno in _ERRNO:
            message, hint = _ERRNO[link.errno]
            place = where or str(link.filename or "")
            return CheckpointError(f"could not store '{repo}': {message}" + (f": '{place}'" if place else ""), hint)
    return None


def _unknown(links: list[BaseException], repo: str) -> KiwiError:
    text = str(links[0]).strip().splitlines()
    return CheckpointError(f"could not fetch '{repo}': {text[0] if text else type(links[0]).__name__}", DETAILS)


def _reason(error: BaseException, kinds: Any) -> str:
    """The first line of the matching exception's own text."""
    text = next((str(link) for link in chain(error) if isinstance(link, kinds)), "").strip()
    return text.splitlines()[0] if text else "no reason given"


def retrying(call: Callable[[], Result], give_up: Callable[[], bool] = lambda: False) -> Result:
    """Call, and call again after a while when the Hub is busy or failing for the moment.

    Waits as long as the Hub asks for, else 1, 2, 4, 8 seconds. Anything that will not mend itself is raised at once.
    """
    wait = FIRST_WAIT
    for attempt in range(RETRIES + 1):
        try:
            return call()
        except Exception as error:
            if attempt == RETRIES or give_up() or not passing(error):
                raise
            pause = asked_wait(error)
            time.sleep(min(wait if pause is None else pause, LONGEST_WAIT))
            wait *= 2
    raise AssertionError


def passing(error: BaseException) -> bool:
    """Whether it may be gone on the next try: a busy or failing server, a file cut short."""
    from huggingface_hub import errors as hub

    if any(isinstance(link, hub.OfflineModeIsEnabled) for link in chain(error)):
        return False
    status = status_of(error)
    if status is not None:
        return status in RETRY_STATUS
    cut_short = isinstance(error, OSError) and "Consistency check failed" in str(error)
    return cut_short or any(isinstance(link, http_library().RemoteProtocolError) for link in chain(error))


def asked_wait(error: BaseException) -> float | None:
    """Seconds the Hub asks to wait (`Retry-After`), or None."""
    value = _header(error, "Retry-After")
    return float(value) if value.isdigit() else None


def _header(error: BaseException, name: str) -> str:
    """A header of the answer that an exception, or what it was raised from, carries."""
    for link in chain(error):
        headers = getattr(getattr(link, "response", None), "headers", None)
        if headers is not None:
            return str(headers.get(name) or "")
    return ""
