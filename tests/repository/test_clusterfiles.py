"""The files in cluster/ are valid by the schemas of their readers, and hold what our sweeps need beyond a schema."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from support.clusterfiles import CLUSTER, LAUNCHERS, ROOT
from support.kuberay_schema import check_manifest, cluster_of, pod_templates

from tokconv.sweep.spec.file import load_spec
from tokconv.sweep.trials.trial import worker_resources

KUBERAY = ("raycluster", "rayjob")


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
