"""A token store on a real S3-compatible server: the same bits, one fetch per node, no damaged shard is ever opened."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.objects import ObjectServer, client_of_a_server
from support.photos import write_photos
from support.stores import write_store
from support.towers import write_tower

import tokconv
from tokconv.config.tree import ClipConfig, Config, DataConfig, ModelConfig
from tokconv.encoding.job import open_job
from tokconv.encoding.pipeline import EncodeProgress, encode
from tokconv.errors import ConfigError, StorageError, StoreError
from tokconv.evaluation.baseline_figures import baseline_figures
from tokconv.store.contents import FILES
from tokconv.store.format import INDEX, SETTINGS, StoreSettings, shard_name
from tokconv.store.reader import TokenStore
from tokconv.store.remote import StorePlace, copy_of, open_remote, place_of, staging_dir
from tokconv.system.storage import CACHE

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:(botocore|aiobotocore|s3fs)")
URL = "s3://tokconv/stores/tiny"


@pytest.fixture(scope="module")
def tower_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tower(tmp_path_factory.mktemp("towers") / "tiny")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokconv.store.format.MAX_SHARD_IMAGES", 4)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ObjectServer]:
    with client_of_a_server(monkeypatch, tmp_path / "objects", tmp_path / "node") as running:
        yield running


@pytest.fixture
def config(tower_dir: Path, tmp_path: Path) -> Config:
    photos = write_photos(tmp_path / "photos", 11)
    data = DataConfig(source="folder", root=str(photos), store=URL, encode_batch_size=3, num_workers=0)
    return Config(model=ModelConfig(clip=ClipConfig(model_name=str(tower_dir))), data=data)


def another_node(monkeypatch: pytest.MonkeyPatch, path: Path) -> Path:
    monkeypatch.setenv(CACHE, str(path))
    return path


def put_store(server: ObjectServer, path: Path) -> TokenStore:
    """Put a store of three shards into the bucket, without tokconv."""
    store = write_store(path)
    shutil.copytree(path, server.files / "stores" / "tiny", ignore=shutil.ignore_patterns(".lock", "derived"))
    return store


def test_an_encode_to_a_url_is_a_local_encode_bit_for_bit(
    server: ObjectServer, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not open_job(config).is_complete()
    store = encode(config, device="cpu")
    assert open_job(config).is_complete()
    assert store.path == copy_of(store.fingerprint)
    assert place_of(store) == StorePlace(URL, store.fingerprint)
    there = server.files / "stores" / "tiny"
    config.data.store = str(tmp_path / "local")
    local = encode(config, device="cpu")
    names = [INDEX, SETTINGS, *(shard_name(number) for number in range(3))]
    for name in names:
        assert (there / name).read_bytes() == (local.path / name).read_bytes()
    assert {path.name for path in there.iterdir()} == {
        *names,
        FILES,
        f"{SETTINGS}.sha256",
        *(f"{n}.sha256" for n in names[2:]),
    }
    another_node(monkeypatch, tmp_path / "another node")
    fetched = open_remote(URL)
    assert fetched.fingerprint == store.fingerprint == local.fingerprint
    assert torch.equal(fetched.tokens(torch.arange(11)), local.tokens(torch.arange(11)))


def test_an_interrupted_encode_resumes_on_another_machine(
    server: ObjectServer, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(step: EncodeProgress) -> None:
        if step.done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(config, device="cpu", progress=stop)
    there = server.files / "stores" / "tiny"
    assert not (there / INDEX).exists()
    with pytest.raises(StoreError, match="no complete token store"):
        open_remote(URL)
    # Like a shard whose upload was cut off before its hash was written.
    (there / shard_name(1)).write_bytes(b"half")
    another_node(monkeypatch, tmp_path / "another node")
    seen: list[int] = []
    store = encode(config, device="cpu", progress=lambda step: seen.append(step.done))
    assert seen == [7, 8, 11]
    assert store.num_images == 11
    another_node(monkeypatch, tmp_path / "a third")
    assert open_remote(URL).fingerprint == store.fingerprint


def test_an_encode_whose_upload_was_removed_uploads_it_again(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    another_node(monkeypatch, tmp_path / "node")
    config.data.store = f"file://{tmp_path}/shared"

    def stop(step: EncodeProgress) -> None:
        if step.done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(config, device="cpu", progress=stop)
    assert (tmp_path / "shared" / shard_name(0)).exists()
    shutil.rmtree(tmp_path / "shared")
    store = encode(config, device="cpu")
    another_node(monkeypatch, tmp_path / "another node")
    assert open_remote(config.data.store).fingerprint == store.fingerprint


def test_another_store_at_the_url_is_refused_before_anything_is_encoded(server: ObjectServer, config: Config) -> None:
    encode(config, device="cpu")
    config.data.dtype = "bfloat16"
    with pytest.raises(StoreError, match=r"data.store: s3://tokconv/stores/tiny was made with other settings \(dtype"):
        encode(config, device="cpu", progress=lambda step: pytest.fail("encoded"))
    assert not staging_dir(URL, plan_settings(config)).exists()


def plan_settings(config: Config) -> StoreSettings:
    return open_job(config).settings


def test_a_node_fetches_once_for_all_its_processes(server: ObjectServer, tmp_path: Path) -> None:
    store = put_store(server, tmp_path / "store")
    code = f"from tokconv.store.remote import open_remote; print(open_remote({URL!r}).fingerprint)"
    environment = {**os.environ, "PYTHONPATH": str(Path(tokconv.__file__).parents[1])}
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [text.splitlines()[-1] for text in outputs] == [store.fingerprint] * 2
    assert sorted("fetching" in text for text in outputs) == [False, True]
    # From here on, the server is not asked.
    place = StorePlace(URL, store.fingerprint)
    shutil.rmtree(server.files / "stores")
    again = pickle.loads(pickle.dumps(place)).open()
    assert torch.equal(again.tokens(torch.arange(40)), store.tokens(torch.arange(40)))
    assert baseline_figures(again, 3, ["pooling"]) == baseline_figures(store, 3, ["pooling"])
    assert list(again.derived_dir.iterdir())


def test_a_damaged_shard_is_refused_and_repaired_by_the_next_try(server: ObjectServer, tmp_path: Path) -> None:
    store = put_store(server, tmp_path / "store")
    shard = server.files / "stores" / "tiny" / shard_name(1)
    good = shard.read_bytes()
    shard.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(StoreError, match=rf"{URL}/{shard_name(1)}: arrived with sha256 .* next try fetches it again"):
        open_remote(URL)
    copy = copy_of(store.fingerprint)
    assert not (copy / INDEX).exists()
    assert not (copy / shard_name(1)).exists()
    inode = (copy / shard_name(0)).stat().st_ino
    shard.write_bytes(good)
    assert TokenStore.open(open_remote(URL).path, verify=True).fingerprint == store.fingerprint
    assert (copy / shard_name(0)).stat().st_ino == inode


def test_a_shared_path_can_be_read_through_the_cache_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = write_store(tmp_path / "shared")
    node = another_node(monkeypatch, tmp_path / "node")
    url = f"file://{tmp_path}/shared"
    assert place_of(store) == StorePlace(str(tmp_path / "shared"), store.fingerprint)
    assert open_remote(url).path == node / "stores" / store.fingerprint
    capsys.readouterr()
    StorePlace(url, store.fingerprint).open()
    assert capsys.readouterr().out == ""


def test_a_store_that_was_replaced_is_refused(server: ObjectServer, tmp_path: Path) -> None:
    put_store(server, tmp_path / "store")
    with pytest.raises(StoreError, match="holds another store than before"):
        StorePlace(URL, "0" * 64).open()


@pytest.mark.parametrize(
    ("url", "change", "message"),
    [
        (URL, {"AWS_SECRET_ACCESS_KEY": "wrong"}, "signature"),
        (URL, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "127.0.0.1:1"),
        ("s3://no-such-bucket/store", {}, "no such object or bucket|NoSuchBucket"),
    ],
)
def test_a_server_that_refuses_is_reported_before_anything_is_encoded(
    server: ObjectServer, config: Config, url: str, change: dict[str, str], message: str
) -> None:
    # In a process of its own: a file system remembers its endpoint and credentials.
    words = [f"data.{name}={value}" for name, value in vars(config.data).items() if name in ("source", "root")]
    command = [sys.executable, "-m", "tokconv.cli.main", "encode", f"data.store={url}", *words]
    found = subprocess.run(
        [*command, f"model.clip.model_name={config.model.clip.model_name}"],
        env={**os.environ, **change, "PYTHONPATH": str(Path(tokconv.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2, found.stderr
    assert found.stderr.count("\n") == 1
    assert "AWS_ENDPOINT_URL" in found.stderr
    assert "wrong" not in found.stderr
    assert not list(server.files.iterdir())


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:s3cr3t@bucket/store", "contains credentials"),
        ("s3://bucket/store?secret=s3cr3t", "contains credentials"),
        ("s3:///store", "must name a bucket"),
        ("https://example.com/store", "nothing can be written there"),
        ("gs://bucket/store", "pip install gcsfs"),
    ],
)
def test_urls_that_cannot_be_used_are_refused(config: Config, url: str, message: str) -> None:
    config.data.store = url
    with pytest.raises((ConfigError, ImportError), match=message) as raised:
        encode(config, device="cpu")
    assert "s3cr3t" not in str(raised.value)


def test_storage_errors_are_os_errors() -> None:
    assert issubclass(StorageError, OSError)
