"""The files in cluster/ are valid by the schemas of their readers, and hold what our sweeps need beyond a schema."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from support.kuberay_schema import check_manifest, cluster_of, pod_templates

from tokconv.sweep.spec.file import load_spec
from tokconv.sweep.trials.trial import worker_resources

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHERS = ("aws", "gcp", "onprem")
KUBERAY = ("raycluster", "rayjob")
FILES = [*(CLUSTER / f"{name}.yaml" for name in LAUNCHERS), *sorted((CLUSTER / "kuberay").glob("*.yaml"))]
FILLED = re.compile(r"# ---- fill in ----\n(.*?)# ---- end of what is filled in ----", re.DOTALL)
PLACEHOLDER = re.compile(r"FILL-IN[-A-Z0-9]*")
SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN|://[^/\s:@]+:[^/\s@]+@|\b\d{12}\b|\b[0-9a-f]{32,}\b"
    r"|(?i:(password|secret_access_key|api_key|auth_token)\s*[:=]\s*[\"']?[A-Za-z0-9+/_-]{6,})"
)


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    return found


def manifest(name: str) -> dict[str, Any]:
    return read(f"kuberay/{name}")


def autoscaling(name: str) -> dict[str, Any]:
    """Return a file's cluster as Ray's autoscaler reads it."""
    if name in LAUNCHERS:
        found: dict[str, Any] = prepare_config(read(name))
        return found
    whole = manifest(name)
    metadata = {"name": whole["metadata"]["name"], "namespace": "default"}
    return _derive_autoscaling_config_from_ray_cr({"metadata": metadata, "spec": cluster_of(whole)})


def ray_version() -> str:
    (found,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return str(found)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_takes_the_launcher_files(name: str) -> None:
    config = prepare_config(read(name))
    validate_config(config)
    assert config["idle_timeout_minutes"] > 0
    # The defaults install a development version of Ray; the image has ours.
    assert not any(config[key] for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_refuses_a_misspelt_key(name: str) -> None:
    config = prepare_config(read(name))
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        validate_config({**config, "idle_timeout_minute": 5})


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_clouds_start_without_workers_and_prefer_spot(name: str) -> None:
    config = prepare_config(read(name))
    types = config["available_node_types"]
    head, workers = types[config["head_node_type"]], {k: v for k, v in types.items() if k != config["head_node_type"]}
    assert head["resources"]["GPU"] == 0
    assert head["resources"]["CPU"] > 0
    assert head["resources"]["tokconv_driver"] == 1000
    for worker in workers.values():
        assert worker["min_workers"] == 0
        assert worker["max_workers"] > 0
        assert worker["resources"]["GPU"] > 0
        assert "tokconv_driver" not in worker["resources"]
    preferred, fallback = workers["gpu_spot"], workers["gpu_on_demand"]
    # Among equals, Ray's first autoscaler takes the last name, the second one the higher priority.
    assert preferred["priority"] > fallback["priority"]
    assert max(workers) == "gpu_spot"
    assert "spot" in str(preferred["node_config"]).lower()
    assert "spot" not in str(fallback["node_config"]).lower()
    assert preferred["resources"] == fallback["resources"]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launched_nodes_authenticate_and_know_the_tracking_server(name: str) -> None:
    config = read(name)
    options = " ".join(config["docker"]["run_options"])
    assert "--env RAY_AUTH_MODE=token" in options
    assert "--env MLFLOW_TRACKING_URI=http" in options
    assert "RAY_AUTH_TOKEN=" not in options
    assert "~/.ray/auth_token" in config["file_mounts"]
    (start,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert "--num-gpus=0" in start
    assert """--resources='{"tokconv_driver": 1000}'""" in start
    (join,) = [line for line in config["worker_start_ray_commands"] if "ray start" in line]
    assert "tokconv_driver" not in join


def test_manifests_follow_the_schemas_of_kubernetes_and_kuberay() -> None:
    kinds = []
    for path in sorted((CLUSTER / "kuberay").glob("*.yaml")):
        for found in yaml.safe_load_all(path.read_text()):
            check_manifest(found)
            kinds.append(found["kind"])
    assert sorted(kinds) == ["Deployment", "RayCluster", "RayJob", "Service"]


def test_unknown_fields_of_a_manifest_are_refused() -> None:
    wrong = manifest("raycluster")
    wrong["spec"]["autoscalerOptions"]["idleTimeout"] = 5
    with pytest.raises(jsonschema.ValidationError, match="idleTimeout"):
        check_manifest(wrong)
    wrong = manifest("rayjob")
    pod_templates(cluster_of(wrong))[0]["spec"]["containers"][0]["imagePulPolicy"] = "Never"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePulPolicy"):
        check_manifest(wrong)


@pytest.mark.parametrize("name", KUBERAY)
def test_ray_reads_the_groups_as_meant(name: str) -> None:
    found = manifest(name)
    spec = cluster_of(found)
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    config = autoscaling(name)
    types = config["available_node_types"]
    head = types[config["head_node_type"]]
    assert head["resources"]["GPU"] == 0
    assert head["resources"]["tokconv_driver"] == 1000
    assert config["idle_timeout_minutes"] == 5
    for group in ("gpu-spot", "gpu-on-demand"):
        assert types[group]["min_workers"] == 0
        assert types[group]["resources"]["GPU"] == 1
        assert "tokconv_driver" not in types[group]["resources"]
    assert types["gpu-spot"]["priority"] > types["gpu-on-demand"]["priority"]


@pytest.mark.parametrize("name", ["aws", "gcp", *KUBERAY])
def test_rays_scheduler_starts_spot_machines_for_trials_and_others_when_there_are_none(name: str) -> None:
    spec, config = load_spec(ROOT / "sweeps/rate_distortion.yaml"), autoscaling(name)
    workers = {key: value for key, value in config["available_node_types"].items() if key != config["head_node_type"]}
    kinds = {
        key: NodeTypeConfig(
            name=key,
            min_worker_nodes=value["min_workers"],
            max_worker_nodes=value["max_workers"],
            priority=value["priority"],
            resources=value["resources"],
        )
        for key, value in workers.items()
    }

    def launched(trials: int, availabilities: dict[str, float]) -> dict[str, int]:
        wanted = [ResourceRequestUtil.make(worker_resources(spec.resources)) for _ in range(trials)]
        request = SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=kinds,
            max_num_nodes=config["max_workers"],
            resource_requests=ResourceRequestUtil.group_by_count(wanted),
            recoverable_resource_availabilities=availabilities,
        )
        return {launch.instance_type: launch.count for launch in ResourceDemandScheduler().schedule(request).to_launch}

    spot, on_demand = sorted(kinds, key=lambda key: "spot" not in key)
    assert launched(0, {}) == {}
    assert launched(spec.concurrency, {}) == {spot: 4}
    assert launched(spec.concurrency, {spot: 0.0}) == {on_demand: 4}


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_have_their_environment_and_reserve_what_ray_counts(name: str) -> None:
    spec = cluster_of(manifest(name))
    assert spec["authOptions"] == {"mode": "token"}
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        assert environment["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
        assert environment.keys() == {"MLFLOW_TRACKING_URI", "TOKCONV_STORAGE"}
        assert group["resources"]["CPU"] == container["resources"]["limits"]["cpu"]
        assert group["resources"]["GPU"] == container["resources"]["limits"].get("nvidia.com/gpu", "0")
        assert pod["restartPolicy"] == "Never"
        assert pod["securityContext"]["runAsNonRoot"] is True


def test_job_and_cluster_are_the_same_cluster() -> None:
    assert cluster_of(manifest("rayjob")) == cluster_of(manifest("raycluster"))


def test_the_jobs_driver_stays_on_the_head() -> None:
    spec = manifest("rayjob")["spec"]
    assert yaml.safe_load(spec["entrypointResources"]) == {"tokconv_driver": 1}
    command = spec["entrypoint"].split()
    assert command[:2] == ["tokconv", "sweep"]
    assert (ROOT / command[2]).is_file()


def test_the_submitter_has_every_variable_of_the_entrypoint() -> None:
    """Its shell, and not the head's, puts them in: one that it lacks becomes nothing."""
    spec = manifest("rayjob")["spec"]
    pod = spec["submitterPodTemplate"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert (
        container["image"]
        == cluster_of(manifest("rayjob"))["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    )
    named = set(re.findall(r"\$\{?(\w+)", spec["entrypoint"]))
    assert named == {"TOKCONV_STORAGE"}
    assert named <= {entry["name"] for entry in container["env"] if entry["value"]}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's own imports warn
def test_mlflow_reads_its_database_from_a_secret_and_listens_only_inside() -> None:
    deployment, service = yaml.safe_load_all((CLUSTER / "kuberay/mlflow.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    environment = {entry["name"]: entry for entry in container["env"]}
    assert environment["MLFLOW_BACKEND_STORE_URI"]["valueFrom"]["secretKeyRef"]["name"] == "tokconv-mlflow"
    assert service["spec"]["type"] == "ClusterIP"
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    hosts = container["args"][container["args"].index("--allowed-hosts") + 1].split(",")
    assert "*" not in hosts
    known = {parameter.envvar for parameter in import_module("mlflow.cli").server.params}
    assert {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"} <= known & environment.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_images_are_pinned_to_this_ray(path: Path) -> None:
    text = path.read_text()
    images = re.findall(r"\bimage: (?:&\w+ )?([^*\s]\S+)", text)
    assert images
    for image in images:
        assert image.endswith(f"/tokconv:{version('tokconv')}-ray{ray_version()}")
    assert ":latest" not in text


@pytest.mark.parametrize("path", [*FILES, CLUSTER / "Dockerfile", CLUSTER / "README.md"], ids=lambda path: path.stem)
def test_no_file_holds_a_secret(path: Path) -> None:
    found = SECRET.search(path.read_text())
    assert found is None, found


@pytest.mark.parametrize("text", ["AKIAABCDEFGHIJKLMNOP", "postgresql://mlflow:hunter2@db/x", "auth_token: c0ffee1234"])
def test_a_secret_would_be_found(text: str) -> None:
    assert SECRET.search(f"value: {text}")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_placeholders_are_in_one_place_and_in_the_table(path: Path) -> None:
    text, guide = path.read_text(), (CLUSTER / "README.md").read_text()
    (block,) = FILLED.findall(text)
    assert text.index(block) < 900
    assert PLACEHOLDER.findall(text) == PLACEHOLDER.findall(block)
    keys = re.findall(r"^\s*([\w/]+): &", block, re.MULTILINE)
    assert keys
    for key in keys:
        assert f"`{key.removeprefix('tokconv/')}`" in guide


def test_the_dockerfile_passes_its_linter() -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert linter is not None
    done = subprocess.run([linter, "--no-color", CLUSTER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_has_the_tested_versions_and_is_not_root() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    assert re.findall(r"^FROM (\S+)$", text, re.MULTILINE) == [f"rayproject/ray:{ray_version()}-py311-cpu"]
    assert "--constraint constraints.txt" in text
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["1000"]
    assert "RAY_AUTH_MODE=token" in text
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    for source in re.findall(r"^COPY --chown=\S+ (.+) \S+$", text, re.MULTILINE):
        for name in source.split():
            assert any(line.startswith(f"!{name}") for line in ignored), name
            assert (ROOT / name).exists()


def test_a_job_uploads_the_package_and_the_specs_but_nothing_large(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    for name in (
        "runs/stores/digits/tokens-00000.safetensors",
        ".venv/lib/large.so",
        "build/lib/large.so",
        "mlflow.db",
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(bytes(2**20))
    create_package(str(tree), tmp_path / "package.zip", include_gitignore=True)
    with ZipFile(tmp_path / "package.zip") as package:
        names = [name for name in package.namelist() if not name.endswith("/")]
        size = sum(entry.file_size for entry in package.infolist())
    tops = {Path(*Path(name).parts[1:]).parts[0] if name.startswith("tree/") else Path(name).parts[0] for name in names}
    assert {"tokconv", "sweeps", "setup.cfg"} <= tops
    assert not tops & {"runs", "tests", "tools", "docs", "cluster", ".venv", "build", ".git", ".ci", "mlflow.db"}
    assert size < 5 * 2**20
