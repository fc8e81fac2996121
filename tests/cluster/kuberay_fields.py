"""Field names that the manifests may use.

KubeRay's are those of the field reference of release v1.6.2 (docs/reference/api.md of ray-project/kuberay, generated
there from the custom resource definitions); Kubernetes' own those of core/v1 and networking.k8s.io/v1, as far as a
Ray cluster needs them. A table maps each field to the name of the type below it, to ``map`` for free keys, or to
None for a plain value; ``[]`` marks a list.
"""

from __future__ import annotations

RESOURCE = {
    "RayCluster": {"apiVersion": None, "kind": None, "metadata": "ObjectMeta", "spec": "RayClusterSpec"},
    "RayJob": {"apiVersion": None, "kind": None, "metadata": "ObjectMeta", "spec": "RayJobSpec"},
    "NetworkPolicy": {"apiVersion": None, "kind": None, "metadata": "ObjectMeta", "spec": "NetworkPolicySpec"},
    "ObjectMeta": {"name": None, "namespace": None, "labels": "map", "annotations": "map"},
    "RayClusterSpec": {
        "upgradeStrategy": "map", "authOptions": "AuthOptions", "suspend": None, "managedBy": None,
        "autoscalerOptions": "AutoscalerOptions", "headServiceAnnotations": "map", "enableInTreeAutoscaling": None,
        "gcsFaultToleranceOptions": "map", "headGroupSpec": "HeadGroupSpec", "rayVersion": None,
        "workerGroupSpecs": "[]WorkerGroupSpec",
    },
    "AuthOptions": {"enableK8sTokenAuth": None, "secretName": None, "mode": None},
    "AutoscalerOptions": {
        "resources": "Resources", "image": None, "imagePullPolicy": None, "securityContext": "SecurityContext",
        "idleTimeoutSeconds": None, "upscalingMode": None, "version": None, "env": "[]EnvVar",
        "envFrom": "[]map", "volumeMounts": "[]VolumeMount",
    },
    "HeadGroupSpec": {
        "template": "PodTemplateSpec", "headService": "map", "enableIngress": None, "resources": "map",
        "labels": "map", "rayStartParams": "map", "serviceType": None,
    },
    "WorkerGroupSpec": {
        "suspend": None, "groupName": None, "replicas": None, "minReplicas": None, "maxReplicas": None,
        "idleTimeoutSeconds": None, "resources": "map", "labels": "map", "rayStartParams": "map",
        "template": "PodTemplateSpec", "scaleStrategy": "map", "numOfHosts": None,
    },
    "RayJobSpec": {
        "activeDeadlineSeconds": None, "backoffLimit": None, "rayClusterSpec": "RayClusterSpec",
        "submitterPodTemplate": "PodTemplateSpec", "metadata": "map", "clusterSelector": "map",
        "submitterConfig": "SubmitterConfig", "managedBy": None, "deletionStrategy": "map", "entrypoint": None,
        "runtimeEnvYAML": None, "jobId": None, "submissionMode": None, "entrypointResources": None,
        "entrypointNumCpus": None, "entrypointNumGpus": None, "ttlSecondsAfterFinished": None,
        "preRunningDeadlineSeconds": None, "shutdownAfterJobFinishes": None, "suspend": None,
    },
    "SubmitterConfig": {"backoffLimit": None},
    "PodTemplateSpec": {"metadata": "ObjectMeta", "spec": "PodSpec"},
    "PodSpec": {
        "containers": "[]Container", "initContainers": "[]Container", "volumes": "[]Volume", "nodeSelector": "map",
        "tolerations": "[]map", "affinity": "map", "serviceAccountName": None, "restartPolicy": None,
        "automountServiceAccountToken": None, "securityContext": "PodSecurityContext", "imagePullSecrets": "[]map",
        "terminationGracePeriodSeconds": None, "priorityClassName": None, "runtimeClassName": None,
    },
    "PodSecurityContext": {
        "runAsNonRoot": None, "runAsUser": None, "runAsGroup": None, "fsGroup": None, "seccompProfile": "map",
        "fsGroupChangePolicy": None, "supplementalGroups": "[]map", "sysctls": "[]map",
    },
    "Container": {
        "name": None, "image": None, "imagePullPolicy": None, "command": "[]map", "args": "[]map",
        "env": "[]EnvVar", "envFrom": "[]map", "ports": "[]ContainerPort", "resources": "Resources",
        "volumeMounts": "[]VolumeMount", "securityContext": "SecurityContext", "lifecycle": "map",
        "livenessProbe": "map", "readinessProbe": "map", "startupProbe": "map", "workingDir": None,
    },
    "SecurityContext": {
        "allowPrivilegeEscalation": None, "capabilities": "map", "privileged": None, "readOnlyRootFilesystem": None,
        "runAsNonRoot": None, "runAsUser": None, "runAsGroup": None, "seccompProfile": "map",
    },
    "ContainerPort": {"containerPort": None, "name": None, "protocol": None, "hostPort": None},
    "EnvVar": {"name": None, "value": None, "valueFrom": "map"},
    "Resources": {"requests": "map", "limits": "map", "claims": "[]map"},
    "VolumeMount": {"name": None, "mountPath": None, "readOnly": None, "subPath": None},
    "Volume": {
        "name": None, "emptyDir": "EmptyDir", "persistentVolumeClaim": "Claim", "secret": "map", "configMap": "map",
        "hostPath": "map",
    },
    "EmptyDir": {"medium": None, "sizeLimit": None},
    "Claim": {"claimName": None, "readOnly": None},
    "NetworkPolicySpec": {
        "podSelector": "map", "policyTypes": "[]map", "ingress": "[]Ingress", "egress": "[]map",
    },
    "Ingress": {"from": "[]map", "ports": "[]map"},
}  # fmt: skip
REQUIRED = {
    "RayClusterSpec": ("headGroupSpec",),
    "HeadGroupSpec": ("rayStartParams", "template"),
    "WorkerGroupSpec": ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    "PodTemplateSpec": ("spec",),
    "PodSpec": ("containers",),
    "Container": ("name", "image"),
    "VolumeMount": ("name", "mountPath"),
}
ENUMS = {
    "submissionMode": ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    "mode": ("disabled", "token"),
    "serviceType": ("ClusterIP", "NodePort", "LoadBalancer"),
    "fsGroupChangePolicy": ("OnRootMismatch", "Always"),
    "restartPolicy": ("Always", "OnFailure", "Never"),
    "upscalingMode": ("Default", "Aggressive", "Conservative"),
}


def problems(value: object, kind: str, where: str = "") -> list[str]:
    """What is wrong with a manifest: unknown or missing fields, wrong kinds of value, unknown words."""
    if kind == "map":
        return []
    if not isinstance(value, dict):
        return [f"{where}: must be a {kind}, got {type(value).__name__}"]
    fields = RESOURCE[kind]
    found = [f"{where}.{key}: unknown field of {kind}" for key in value if key not in fields]
    found += [f"{where}.{key}: is required" for key in REQUIRED.get(kind, ()) if key not in value]
    for key, below in value.items():
        named = fields.get(key)
        if key in ENUMS and below not in ENUMS[key]:
            found.append(f"{where}.{key}: {below!r} is none of {', '.join(ENUMS[key])}")
        if named is None:
            if key in fields and isinstance(below, dict | list):
                found.append(f"{where}.{key}: must be a plain value")
        elif named.startswith("[]"):
            if not isinstance(below, list):
                found.append(f"{where}.{key}: must be a list")
                continue
            for index, item in enumerate(below):
                found += problems(item, named[2:], f"{where}.{key}[{index}]")
        else:
            found += problems(below, named, f"{where}.{key}")
    return found
