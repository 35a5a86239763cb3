"""Tells what MLflow refuses from an outage, and says what its user can do about it.

MLflow raises one class for everything, and the status code of a failed database or a proxy's page is often 500. The
text of the error says more; the rules follow what MLflow 3.17 raises.
"""

from __future__ import annotations

import errno
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokconv.sweep.tracking.follower import RefusedError, one_line
from tokconv.system.uris import without_credentials

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
STALE = re.compile(r"(run|experiment) \S+ must be in the 'active' state|run (with id=)?\S+ not found", re.IGNORECASE)
"""A run or the experiment was deleted meanwhile: connecting anew finds out what to do."""
RACE = re.compile(r"UniqueViolation|UNIQUE constraint failed")
"""Another sweep wrote the same row at the same moment: the next try finds it."""
OTHER_SCHEMA = re.compile(r"out-of-date database schema \(found version (\w+)")
OTHER_URI, OTHER_NAME = "set tracking.uri to another database", "tracking.experiment=NAME"
RULES = {
    r"UNAUTHENTICATED|error code 401": (
        "{uri} does not know this user; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
        "MLFLOW_TRACKING_TOKEN"
    ),
    r"PERMISSION_DENIED|error code 403": (
        "{uri} does not let this user write to the experiment {name}; ask its owner, or name another one with "
        f"{OTHER_NAME}"
    ),
    r"ENDPOINT_NOT_FOUND|error code 40[45]|not in a valid JSON format|Exceeded 30 redirects": (
        "no MLflow server answers at {uri}; set tracking.uri to its address, as in http://HOST:5000, without the path "
        "of a page"
    ),
    r"filesystem tracking backend": (
        "{uri} is a folder, and MLflow keeps runs in databases only; name one, as in "
        "tracking.uri=sqlite:////PATH/mlflow.db (mlflow migrate-filestore moves what a folder holds)"
    ),
    r"unsupported URI|Can't load plugin|Could not parse": (
        "{uri} is no address of MLflow; set tracking.uri to http://HOST:5000 or sqlite:////PATH/mlflow.db"
    ),
    r"No module named": (
        "{uri} needs a package that is missing: {text}; for PostgreSQL: pip install 'tokconv[server]'"
    ),
    r"exceeds the maximum length of \d+ characters|Invalid experiment name": (
        f"the experiment's name, {{name}}, is not allowed: {{text}}; give another one with {OTHER_NAME}"
    ),
    r"readonly database": f"{{uri}} can only be read; make the file and its folder writable, or {OTHER_URI}",
    r"unable to open database file": f"{{uri}} cannot be opened; make its folder writable, or {OTHER_URI}",
    r"file is not a database": f"{{uri}} is no database; move that file away, or {OTHER_URI}",
    r"password authentication failed|Access denied|Unknown database|(database|role) \S+ does not exist": (
        "{uri} refuses: {text}; correct tracking.uri"
    ),
    r"CERTIFICATE_VERIFY_FAILED": (
        "the certificate of {uri} is not trusted; set MLFLOW_TRACKING_SERVER_CERT_PATH to the file of its authority"
    ),
    r"in header value|Invalid URL|No connection adapters|Failed to parse": (
        "the request cannot be sent: {text}; correct tracking.uri, or MLFLOW_TRACKING_TOKEN"
    ),
}
"""Pattern in the text of an error -> why nothing is taken, and what to do."""
CODES = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS", "UNAUTHORIZED")
"""Error codes that no repetition changes."""


@contextmanager
def told_apart(uri: str, experiment: str) -> Iterator[None]:
    """Turn the errors in this block that are refusals into RefusedError; others pass."""
    try:
        yield
    except RefusedError:
        raise
    except Exception as error:
        if reason := refusal(error, uri, experiment):
            raise RefusedError(reason) from error
        raise


def refusal(error: Exception, uri: str, experiment: str) -> str:
    """Return why MLflow refuses and what to do; "" if the error may pass by itself."""
    place, text = without_credentials(uri), one_line(error)
    whole = f"{getattr(error, 'error_code', '')} {error}"
    if STALE.search(whole) or RACE.search(whole):
        return ""
    if found := OTHER_SCHEMA.search(whole):
        return _other_schema(found[1], place)
    for pattern, reason in RULES.items():
        if re.search(pattern, whole):
            return reason.format(uri=place, name=repr(experiment), text=text)
    if isinstance(error, OSError) and error.errno in UNUSABLE:
        return f"{error.filename or place} cannot be written ({error.strerror}); make it writable"
    return f"{place} refuses: {text}" if getattr(error, "error_code", "") in CODES else ""


def deleted_experiment(experiment: str, number: str, uri: str) -> RefusedError:
    """Return the error for an experiment in MLflow's trash, with the command that restores it."""
    command = f"MLFLOW_TRACKING_URI={shlex.quote(without_credentials(uri))} mlflow experiments restore -x {number}"
    return RefusedError(
        f"the experiment {experiment!r} was deleted; restore it: {command}; or name another one with "
        "tracking.experiment=NAME"
    )


def check_database(uri: str) -> None:
    """Connect to a database once: MLflow itself tries for a minute and a half before it says what is wrong."""
    if uri.startswith(DATABASES):
        import sqlalchemy

        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
        engine.connect().close()


def _other_schema(found: str, place: str) -> str:
    import mlflow

    versions = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
    if any(versions.glob(f"{found}_*.py")):
        return (
            f"{place} was made by an older MLflow; back it up, then run: mlflow db upgrade {shlex.quote(place)}; or "
            f"{OTHER_URI}"
        )
    return f"{place} was made by a newer MLflow than {mlflow.__version__}; install that one, or {OTHER_URI}"
