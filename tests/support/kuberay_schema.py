"""The fields of KubeRay 1.7's RayCluster and RayJob, to refuse all others: the operator's own schema is in no package.

Written down from the published field reference (docs.ray.io, "KubeRay CRD API reference", KubeRay 1.7.1). Pod templates
are not in it: they are Kubernetes' own and are checked by its schema.
"""

from __future__ import annotations

from typing import Any

import jsonschema
import kubernetes_validate

KUBERNETES = "1.34"
WHOLE = {"type": "integer", "minimum": 0}
TEXT = {"type": "string"}
FLAG = {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
ANYTHING: dict[str, Any] = {}


def _object(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def _one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


GROUP = {"rayStartParams": TEXTS, "resources": TEXTS, "labels": TEXTS, "template": ANYTHING}
CLUSTER = _object(
    ("headGroupSpec", "rayVersion"),
    suspend=FLAG,
    managedBy=TEXT,
    authOptions=_object(mode=_one_of("disabled", "token"), enableK8sTokenAuth=FLAG, secretName=TEXT),
    autoscalerOptions=_object(
        resources=ANYTHING,
        image=TEXT,
        imagePullPolicy=_one_of("Always", "IfNotPresent", "Never"),
        securityContext=ANYTHING,
        idleTimeoutSeconds=WHOLE,
        upscalingMode=_one_of("Default", "Aggressive", "Conservative"),
        version=_one_of("v1", "v2"),
        env=ANYTHING,
        envFrom=ANYTHING,
        volumeMounts=ANYTHING,
    ),
    headServiceAnnotations=TEXTS,
    enableInTreeAutoscaling=FLAG,
    gcsFaultToleranceOptions=ANYTHING,
    headGroupSpec=_object(
        ("template",),
        **GROUP,
        headService=ANYTHING,
        enableIngress=FLAG,
        serviceType=_one_of("ClusterIP", "NodePort", "LoadBalancer"),
    ),
    rayVersion=TEXT,
    workerGroupSpecs={
        "type": "array",
        "items": _object(
            ("groupName", "minReplicas", "maxReplicas", "template"),
            **GROUP,
            suspend=FLAG,
            groupName=TEXT,
            replicas=WHOLE,
            minReplicas=WHOLE,
            maxReplicas=WHOLE,
            idleTimeoutSeconds=WHOLE,
            priority={"type": "integer"},
            scaleStrategy=ANYTHING,
            numOfHosts=WHOLE,
        ),
    },
)
JOB = _object(
    activeDeadlineSeconds=WHOLE,
    backoffLimit=WHOLE,
    rayClusterSpec=CLUSTER,
    submitterPodTemplate=ANYTHING,
    metadata=TEXTS,
    clusterSelector=TEXTS,
    submitterConfig=_object(backoffLimit=WHOLE),
    managedBy=TEXT,
    deletionStrategy=ANYTHING,
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    jobId=TEXT,
    submissionMode=_one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    entrypointResources=TEXT,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    ttlSecondsAfterFinished=WHOLE,
    shutdownAfterJobFinishes=FLAG,
    suspend=FLAG,
)
SPECS = {"RayCluster": CLUSTER, "RayJob": JOB}


def check_manifest(manifest: dict[str, Any]) -> None:
    """Refuse an unknown or wrong field of a manifest, Kubernetes' own kinds and KubeRay's.

    Raises:
        jsonschema.ValidationError, kubernetes_validate.ValidationError.
    """
    if manifest["kind"] not in SPECS:
        _check_kubernetes(manifest)
        return
    whole = _object(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion=_one_of("ray.io/v1"),
        kind=_one_of(manifest["kind"]),
        metadata=ANYTHING,
        spec=SPECS[manifest["kind"]],
    )
    jsonschema.validate(manifest, whole)
    cluster = cluster_of(manifest)
    submitter = [manifest["spec"]["submitterPodTemplate"]] if "submitterPodTemplate" in manifest["spec"] else []
    for template in (*pod_templates(cluster), *submitter):
        _check_pod(manifest["metadata"], template)
    # What the autoscaler's container is given has the form that every container's has.
    options = {key: cluster["autoscalerOptions"][key] for key in ("env", "resources")}
    container = {"name": "autoscaler", "image": "autoscaler:1", **options}
    _check_pod(manifest["metadata"], {"spec": {"containers": [container]}})


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The RayCluster's spec of either kind."""
    spec: dict[str, Any] = manifest["spec"]
    return spec["rayClusterSpec"] if manifest["kind"] == "RayJob" else spec


def pod_templates(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """The head's, then the workers'."""
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


def _check_pod(metadata: dict[str, Any], template: dict[str, Any]) -> None:
    _check_kubernetes({"apiVersion": "v1", "kind": "PodTemplate", "metadata": metadata, "template": template})


def _check_kubernetes(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
