"""Any printable name survives a URI: read back by ourselves, SQLAlchemy, MLflow, and at a `file://` URL."""

from __future__ import annotations

import string
from itertools import product
from pathlib import Path

import pytest
from mlflow.utils.file_utils import local_file_uri_to_path
from sqlalchemy.engine import make_url

from tokconv.errors import ConfigError
from tokconv.system.storage import Remote, check_url
from tokconv.system.uris import file_uri, path_of, sqlite_uri

ASCII = [letter for letter in map(chr, range(32, 127)) if letter != "/"]
SIGNS = [letter for letter in ASCII if not letter.isalnum()]
PAIRS = ["".join(pair) for pair in product(SIGNS, repeat=2)]
ESCAPES = ["%" + "".join(pair) for pair in product(string.hexdigits, repeat=2)]
LONGER = [
    *("My%20Project", "%2F", "100%", "%%25", "a b.c", "-rf", "~root", "a;b&c=d?e#f", 'it\'s "it"', "C:\\x", "[a]{b}*"),
    *("Äpfel", "中文", "\U0001f600", "é", "e\u0301", "\u202e", "ﬁ", "ß"),
]
NAMES = sorted({*ASCII, *PAIRS, *ESCAPES, *LONGER} - {".", ".."})


def test_every_printable_name_survives_the_uri_of_a_file_and_of_a_database() -> None:
    assert len(NAMES) == 1618
    for name in NAMES:
        path = Path("/nowhere", name, "mlflow.db")
        file, database = file_uri(path), sqlite_uri(path)
        assert path_of(file) == path_of(database) == path, name
        assert local_file_uri_to_path(file) == make_url(database).database == str(path), name
        assert file == path.as_uri(), name


def test_plain_paths_keep_the_uri_that_they_always_had() -> None:
    assert sqlite_uri("/data/runs_1/mlflow.db") == "sqlite:////data/runs_1/mlflow.db"
    assert path_of("sqlite:///here/mlflow.db?timeout=1") == Path("here/mlflow.db")


def test_a_name_that_is_no_text_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"'/nowhere/kaput\\udce9': this name is not UTF-8.*rename the folder"):
        file_uri("/nowhere/kaput\udce9")


def test_every_printable_name_is_taken_letter_by_letter_in_a_url(tmp_path: Path) -> None:
    names = sorted({*ASCII, *(f"a{letter}b" for letter in ASCII), *LONGER} - {"."})
    for name in names:
        place = Remote(check_url("storage", f"file://{tmp_path}/{name}/runs"))
        (place / "x.txt").write(name.encode())
        assert (tmp_path / name / "runs" / "x.txt").read_text() == name
        assert place.files() == {"x.txt": len(name.encode())}
        place.download_all(["x.txt"], tmp_path / "copy")
        assert (tmp_path / "copy" / "x.txt").read_text() == name
    assert {path.name for path in tmp_path.iterdir()} == {*names, "copy"}
