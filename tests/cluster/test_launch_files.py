"""The files that start clusters: valid by their own tools' rules, with token authentication and no secrets."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.start import build_parser, head_command
from tests.cluster import dockerfile_rules, kuberay_fields

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "cluster" / "launch"
UP_FILES = ("aws.yaml", "bare-metal.yaml")
MANIFESTS = ("raycluster.yaml", "rayjob.yaml")
POLICY = "network-policy.yaml"
DOCKERFILES = ("Dockerfile.cpu", "Dockerfile.gpu")
ALL_FILES = sorted(p for p in LAUNCH.glob("**/*") if p.is_file())


def read(name: str) -> Any:
    return yaml.safe_load((LAUNCH / name).read_text("utf-8"))


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((LAUNCH / "kuberay" / name).read_text("utf-8")))


@pytest.mark.parametrize("name", UP_FILES)
def test_ray_up_files_obey_ray_s_own_schema(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = read(name)
    validate_config(prepare_config(copy.deepcopy(config)))
    broken = prepare_config(copy.deepcopy(config))
    broken["dashboard"] = "0.0.0.0"
    with pytest.raises(jsonschema.ValidationError):
        validate_config(broken)


@pytest.mark.parametrize("name", UP_FILES)
def test_ray_up_starts_nodes_through_our_own_command(name: str) -> None:
    """Which makes the token's mode private, requires it, and keeps the dashboard on the loopback."""
    config = read(name)
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert any("chmod 600 ~/.ray/auth_token" in line for line in config["setup_commands"])
    for role in ("head", "worker"):
        lines = config[f"{role}_start_ray_commands"]
        assert len(lines) == 1 and f"-m cluster.start {role}" in lines[0]
        words = lines[0].split(" -m cluster.start ")[1].replace('"', "").split()
        cut = words.index("--") if "--" in words else len(words)
        args = build_parser().parse_args(words[:cut])
        if role == "head":
            assert "--dashboard-host=127.0.0.1" in head_command(args, words[cut + 1 :])


def test_the_security_group_lets_ssh_in_and_nothing_else() -> None:
    rules = read("aws.yaml")["provider"]["security_group"]["IpPermissions"]
    assert [(r["FromPort"], r["ToPort"]) for r in rules] == [(22, 22)]
    assert all(r["CidrIp"] != "0.0.0.0/0" for rule in rules for r in rule["IpRanges"])
    for node in read("aws.yaml")["available_node_types"].values():
        assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
        assert all(d["Ebs"]["Encrypted"] for d in node["node_config"]["BlockDeviceMappings"])


@pytest.mark.parametrize("name", [*MANIFESTS, POLICY])
def test_manifests_use_known_fields_only(name: str) -> None:
    for document in documents(name):
        assert kuberay_fields.problems(document, document["kind"], document["kind"]) == []


def test_what_is_wrong_in_a_manifest_is_seen() -> None:
    manifest = documents("raycluster.yaml")[0]
    manifest["spec"]["headGroupSpec"]["replicas"] = 1
    manifest["spec"]["authOptions"]["mode"] = "tokens"
    del manifest["spec"]["workerGroupSpecs"][0]["groupName"]
    pod = manifest["spec"]["workerGroupSpecs"][0]["template"]["spec"]
    pod["containers"][0]["resource"] = {}
    pod["securityContext"]["fsGroupChangePolicy"] = "OnMismatch"
    found = "\n".join(kuberay_fields.problems(manifest, "RayCluster", "RayCluster"))
    for words in (
        "headGroupSpec.replicas: unknown",
        "'tokens' is none of",
        "groupName: is required",
        "resource: unknown",
        "'OnMismatch' is none of OnRootMismatch, Always",
    ):
        assert words in found


def cluster_spec(name: str) -> dict[str, Any]:
    spec = documents(name)[0]["spec"]
    return spec.get("rayClusterSpec", spec)


def ray_pods(name: str) -> list[dict[str, Any]]:
    """The pods of the cluster that a manifest describes."""
    spec = cluster_spec(name)
    return [group["template"] for group in (spec["headGroupSpec"], *spec.get("workerGroupSpecs", []))]


def all_pods(name: str) -> list[dict[str, Any]]:
    """Every pod that the operator makes of a manifest, as its release 1.6.2 does: a RayJob's submitter too."""
    manifest = documents(name)[0]
    spec, submitters = manifest["spec"], []
    if manifest["kind"] == "RayJob" and spec.get("submissionMode", "K8sJobMode") == "K8sJobMode":
        image = ray_pods(name)[0]["spec"]["containers"][0]["image"]
        own = {"metadata": {}, "spec": {"containers": [{"name": "ray-job-submitter", "image": image}]}}
        submitters = [spec.get("submitterPodTemplate", own)]
    return [*ray_pods(name), *submitters]


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_require_the_token_and_are_not_root(name: str) -> None:
    import ray

    spec = cluster_spec(name)
    assert spec["authOptions"] == {"mode": "token", "secretName": "rlhf-ray-token"}
    assert spec["rayVersion"] == ray.__version__
    for template in all_pods(name):
        pod = template["spec"]
        security = pod["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] == 1000
        assert security["fsGroupChangePolicy"] == "OnRootMismatch", "or each start walks through the whole volume"
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}  # fmt: skip
            assert not container["image"].endswith((":latest", "rlhf"))
    for template in ray_pods(name):
        for container in template["spec"]["containers"]:
            mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
            volumes = {v["name"]: v for v in template["spec"]["volumes"]}
            assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
            assert set(mounts.values()) == volumes.keys()


def let_through(policy: dict[str, Any], labels: dict[str, str], namespace: str) -> bool:
    """Whether a policy lets a pod with these labels, in a namespace, reach the pods that it selects."""
    here = namespace == "here"
    for rule in policy["spec"]["ingress"]:
        for peer in rule["from"]:
            pods, names = (peer.get(key, {}).get("matchLabels", {}) for key in ("podSelector", "namespaceSelector"))
            placed = {"kubernetes.io/metadata.name": namespace}.items() >= names.items() if names else here
            if placed and labels.items() >= pods.items():
                return True
    return False


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_policy_lets_every_pod_of_a_manifest_reach_the_others_and_no_stranger(name: str) -> None:
    (policy,) = documents(POLICY)
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    guarded = policy["spec"]["podSelector"]["matchLabels"]
    for template in all_pods(name):
        labels = template["metadata"].get("labels", {})
        assert labels.items() >= guarded.items(), "the policy misses this pod"
        assert let_through(policy, labels, "here"), "the policy keeps this pod from the head"
        assert not let_through(policy, labels, "elsewhere")
    assert let_through(policy, {}, "kuberay-operator")
    assert not let_through(policy, {}, "here")


def test_the_submitter_is_a_pod_that_kuberay_takes() -> None:
    spec = documents("rayjob.yaml")[0]["spec"]
    pod = spec["submitterPodTemplate"]["spec"]
    assert pod["restartPolicy"] == "Never", "a Kubernetes job refuses Always, which pods have else"
    (container,) = pod["containers"]
    assert "command" not in container and "args" not in container, "KubeRay writes its own"
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert container["image"] == head["image"], "both ends of the job server are one version"


def test_only_the_operator_s_job_opens_the_dashboard_and_a_policy_guards_it() -> None:
    assert cluster_spec("raycluster.yaml")["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    for name in MANIFESTS:
        assert f"kubectl apply -f cluster/launch/kuberay/{POLICY}" in (LAUNCH / "kuberay" / name).read_text("utf-8")
    assert f"kubectl apply -f cluster/launch/kuberay/{POLICY}" in (ROOT / "docs/launch/kuberay.md").read_text("utf-8")


def test_the_job_runs_a_stage_that_exists() -> None:
    from rlhf.config import load_config

    words = documents("rayjob.yaml")[0]["spec"]["entrypoint"].split()
    assert words[:4] == ["python", "-m", "rlhf", "sft"]
    file = words[words.index("--config") + 1].removeprefix("/app/")
    load_config("sft", ROOT / file, words[words.index("--config") + 2 :])


def test_shell_scripts_pass_shellcheck() -> None:
    program = Path(sys.executable).parent / "shellcheck"
    scripts = sorted(str(p) for p in LAUNCH.glob("**/*.sh"))
    assert scripts and all(os.access(s, os.X_OK) for s in scripts)
    done = subprocess.run(
        [program, "--severity=style", *scripts], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfiles(name: str) -> None:
    text = (LAUNCH / name).read_text("utf-8")
    assert dockerfile_rules.problems(text, ROOT) == []
    ignored = (LAUNCH / f"{name}.dockerignore").read_text("utf-8").splitlines()
    assert "*" in ignored, "what is not named stays out of the image"
    copied = [w for word, rest in dockerfile_rules.instructions(text) if word == "COPY" for w in rest.split()[:-1]]
    assert {f"!{w}" for w in copied} <= set(ignored)


@pytest.mark.parametrize(("line", "words"), [
    ("FROM python:latest", "pin a full version"),
    ("FROM python:3.11", "pin a full version"),
    ("USER root", "must not be root"),
    ("ADD https://example.com/x.tar.gz /x", "use COPY"),
    ("ENV HF_TOKEN=hf_abc", "secret"),
    ("ARG WANDB_API_KEY=abc", "secret"),
    ("RUN apt-get update && apt-get install --yes curl", "--no-install-recommends"),
    ("RUN pip install ray", "tested versions"),
    ("RUN curl -s https://example.com/get.sh | sh", "nobody has pinned"),
    ("COPY . /app", "takes everything"),
    ("COPY nothing-here /app", "is not there"),
])  # fmt: skip
def test_what_is_wrong_in_a_dockerfile_is_seen(line: str, words: str) -> None:
    text = (LAUNCH / "Dockerfile.cpu").read_text("utf-8")
    assert words in "\n".join(dockerfile_rules.problems(f"{text}\n{line}\n", ROOT))


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda p: p.relative_to(LAUNCH).as_posix())
def test_no_file_holds_a_secret_or_opens_ray_to_strangers(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not re.search(r"RAY_AUTH_TOKEN\s*[=:]\s*\S", text), "the token is a file or a mounted secret"
    assert not re.search(r"AKIA[0-9A-Z]{16}|hf_\w{20,}|BEGIN [A-Z ]*PRIVATE KEY", text)
    assert "RAY_AUTH_MODE=disabled" not in text and "ray stop" not in text
    if path.name != "rayjob.yaml":  # the operator's way in, guarded by a policy
        assert "0.0.0.0" not in text


def test_every_launch_file_has_its_page() -> None:
    pages = {p.stem: p.read_text("utf-8") for p in (ROOT / "docs" / "launch").glob("*.md")}
    assert {"aws", "bare-metal", "kuberay", "slurm", "docker"} <= pages.keys()
    for path in ALL_FILES:
        if path.suffix == ".dockerignore":
            continue
        assert any(path.relative_to(ROOT).as_posix() in text for text in pages.values()), path.name
    for name, text in pages.items():
        for found in re.findall(r"(?:cluster|configs|docs)/[\w./-]+\.(?:yaml|sh|md|cpu|gpu|json)", text):
            assert (ROOT / found).exists(), f"docs/launch/{name}.md names {found}"
