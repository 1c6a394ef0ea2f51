"""Every overlay is right, and every rule notices the mistake that it is there for."""

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from tests.k8s.check import OVERLAYS, main
from tests.k8s.render import patch_object, render
from tests.k8s.rules import ROOT, RULES, check, clusters, pods

CLUSTER = "/spec/rayClusterSpec"
HEAD = f"{CLUSTER}/headGroupSpec"
WORKER = f"{CLUSTER}/workerGroupSpecs/0"
CONTAINER = "/template/spec/containers/0"
SINGLE = "/spec/jobTemplate/spec/template/spec"


@dataclass(frozen=True)
class Mistake:
    """One change to a rendering that is right, and the rule that must object."""

    rule: str
    path: str
    value: Any = None
    op: str = "add"
    overlay: str = "cloud"
    target: str = "RayJob/study"

    def __str__(self) -> str:
        return f"{self.rule}-{self.target}-{self.path.rsplit('/', 1)[-1]}-{self.value}"[:80]


def remove(rule: str, path: str, **of: str) -> Mistake:
    return Mistake(rule, path, op="remove", **of)


NIGHTLY = {"overlay": "cloud-nightly", "target": "CronJob/nightly"}
WHOLE = {"overlay": "cloud-study-gpu"}
STUDY = "python -m jobs.main pipeline demo --store s3://b/s"
SPACE = {"target": "Namespace/sparsight"}
DELETED = {"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED"}}
MISTAKES = [
    # schemas
    Mistake("schema", f"{CLUSTER}/enableInTreeAutoscalling", True),
    Mistake("schema", "/spec/backoffLimit", "2"),
    Mistake("schema", f"{CLUSTER}/authOptions/mode", "tokens"),
    Mistake("schema", f"{WORKER}{CONTAINER}/imagePullPolice", "Always"),
    Mistake("schema", f"{WORKER}/rayStartParams/num-cpus", 7),
    Mistake("schema", "/metadata/label", {}),
    Mistake("schema", "/automount", False, target="ServiceAccount/sparsight-head"),
    Mistake("schema", "/spec/ingress", [{"form": []}], target="NetworkPolicy/metrics"),
    Mistake("schema", "/spec/schedules", "@daily", **NIGHTLY),
    Mistake("schema", f"{SINGLE}/containers/0/image", 7, **NIGHTLY),
    Mistake("schema", "/spec/podMetricsEndpoints/0/prot", "m", target="PodMonitor/sparsight-heads"),
    Mistake("schema", "/spec/clusterqueue", "q", overlay="cloud-kueue", target="LocalQueue/studies"),
    Mistake("schema", "/spec/resourceGroups/0/flavors/0/quota", 1, overlay="kueue", target="ClusterQueue/studies"),
    Mistake("schema", "/apiVersion", "ray.io/v1alpha1"),
    # the operator's rules
    Mistake("name", "/metadata/name", "Study"),
    Mistake("name", "/metadata/name", "s" * 48),
    Mistake("job-end", "/spec/shutdownAfterJobFinishes", False),
    Mistake("job-end", "/spec/activeDeadlineSeconds", 0),
    Mistake("job-end", "/spec/backoffLimit", -1),
    Mistake("deletion", "/spec/deletionStrategy", {"deletionRules": [DELETED]}),
    Mistake("deletion", "/spec/deletionStrategy", {"onSuccess": {"policy": "DeleteCluster"}}),
    Mistake("submission", "/spec/submissionMode", "Foo"),
    Mistake("submission", "/spec/submissionMode", "SidecarMode"),
    Mistake("submission", "/spec/submissionMode", "InteractiveMode"),
    Mistake("submission", "/spec/clusterSelector", {"ray.io/cluster": "laboratory"}),
    remove("submission", "/spec/submitterPodTemplate"),
    remove("submission", CLUSTER),
    Mistake("autoscaler", f"{CLUSTER}/autoscalerOptions/version", "v1"),
    Mistake("autoscaler", f"{CLUSTER}/enableInTreeAutoscaling", False),
    Mistake("autoscaler", f"{WORKER}/suspend", True),
    Mistake("autoscaler", f"{WORKER}/template/spec/restartPolicy", "Always"),
    Mistake("autoscaler", f"{HEAD}{CONTAINER}/env/-", {"name": "RAY_enable_autoscaler_v2", "value": "1"}),
    Mistake("autoscaler", f"{WORKER}/idleTimeoutSeconds", 60, overlay="cloud-kueue"),
    remove("autoscaler", f"{WORKER}/maxReplicas", overlay="cloud-kueue"),
    Mistake("replicas", f"{WORKER}/minReplicas", 3),
    Mistake("replicas", f"{WORKER}/maxReplicas", 1),
    Mistake("gates", f"{CLUSTER}/networkPolicy", {"mode": "DenyAll"}),
    Mistake("group-resources", f"{WORKER}/resources", {"CPU": "8"}),
    Mistake("group-resources", f"{WORKER}/rayStartParams/labels", "a=b"),
    Mistake("token", f"{CLUSTER}/authOptions/mode", "disabled"),
    remove("token", f"{CLUSTER}/authOptions"),
    Mistake("token", f"{CLUSTER}/authOptions/enableK8sTokenAuth", True),
    Mistake("token", f"{CLUSTER}/rayVersion", "2.51.0"),
    Mistake("token", f"{WORKER}{CONTAINER}/env/-", {"name": "RAY_AUTH_MODE", "value": "disabled"}),
    Mistake("kueue", f"{CLUSTER}/enableInTreeAutoscaling", True, overlay="cloud-kueue"),
    Mistake("kueue", "/metadata/labels/kueue.x-k8s.io~1queue-name", "other", overlay="cloud-kueue"),
    Mistake("kueue", f"{WORKER}/groupName", "head", overlay="cloud-kueue"),
    remove("kueue", "/metadata/labels/kueue.x-k8s.io~1queue-name", overlay="cloud-kueue"),
    # ours
    Mistake("hardened", f"{HEAD}/template/spec/securityContext/runAsNonRoot", False),
    Mistake("hardened", f"{WORKER}/template/spec/securityContext/runAsUser", 0),
    remove("hardened", f"{WORKER}/template/spec/securityContext/seccompProfile"),
    Mistake("hardened", f"{HEAD}{CONTAINER}/securityContext/allowPrivilegeEscalation", True),
    Mistake("hardened", f"{HEAD}{CONTAINER}/securityContext/capabilities/add", ["NET_ADMIN"]),
    Mistake("hardened", f"{WORKER}{CONTAINER}/securityContext/readOnlyRootFilesystem", False),
    remove("hardened", "/spec/submitterPodTemplate/spec/containers/0/securityContext"),
    remove("hardened", f"{CLUSTER}/autoscalerOptions/securityContext"),
    Mistake("hardened", f"{WORKER}/template/spec/automountServiceAccountToken", True),
    Mistake("hardened", f"{WORKER}/template/spec/hostNetwork", True),
    Mistake("hardened", f"{WORKER}/template/spec/volumes/-", {"name": "n", "hostPath": {"path": "/"}}),
    Mistake("hardened", "/metadata/labels/pod-security.kubernetes.io~1enforce", "baseline", **SPACE),
    Mistake("hardened", f"{SINGLE}/automountServiceAccountToken", True, **NIGHTLY),
    Mistake("resources", f"{WORKER}{CONTAINER}/resources/limits/memory", "32Gi"),
    Mistake("resources", f"{WORKER}{CONTAINER}/resources/limits/cpu", "7"),
    remove("resources", f"{WORKER}{CONTAINER}/resources/requests/ephemeral-storage"),
    Mistake("resources", f"{HEAD}/rayStartParams/num-cpus", "2"),
    Mistake("resources", f"{WORKER}/rayStartParams/num-cpus", "9"),
    Mistake("resources", f"{WORKER}/rayStartParams/object-store-memory", "17179869184"),
    Mistake("resources", f"{WORKER}/rayStartParams/num-gpus", "2", overlay="cloud-gpu", target="RayJob/sweep"),
    Mistake("command", "/spec/entrypoint", "python -m jobs.main studies --store s3://b/s"),
    Mistake("command", "/spec/entrypoint", "python -m jobs.main pipeline demo --store s3://b/s --actor 13"),
    Mistake("command", "/spec/entrypoint", "python -m jobs.main pipeline demo --store s3://b/s --actors 14"),
    Mistake("command", "/spec/entrypoint", "python -m jobs.main pipeline demo --store s3://b/s"),
    Mistake("command", "/spec/entrypoint", "python -m jobs.main pipeline demo --store ./store --actors 13"),
    Mistake("command", "/spec/entrypoint", "python -m jobs.main pipeline demo --store $STORE --actors 13"),
    Mistake("command", "/spec/entrypoint", "python study.py"),
    Mistake("command", f"{WORKER}/minReplicas", 0, overlay="cloud-gpu", target="RayJob/sweep"),
    Mistake("command", f"{CLUSTER}/workerGroupSpecs/1/minReplicas", 0, **WHOLE),
    Mistake("command", "/spec/entrypoint", f"{STUDY} --actors 21 --gpus-per-trial 0.25", **WHOLE),
    Mistake("command", "/spec/entrypoint", f"{STUDY} --actors 20 --gpus-per-actor 0.25", **WHOLE),
    Mistake("command", f"{SINGLE}/containers/0/args/11", "8", op="replace", **NIGHTLY),
    Mistake("secrets", f"{WORKER}{CONTAINER}/env/-", {"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
    Mistake("secrets", f"{WORKER}{CONTAINER}/envFrom/-", {"secretRef": {"name": "sparsight-wandb", "optional": True}}),
    remove("secrets", f"{WORKER}{CONTAINER}/envFrom/1/secretRef/optional"),
    Mistake("secrets", "/data/WANDB_API_KEY", "x", target="ConfigMap/sparsight-environment"),
    Mistake("secrets", "/spec/runtimeEnvYAML", "env_vars: {A: b}"),
    Mistake("secrets", "/kind", "Secret", target="ConfigMap/sparsight-environment"),
    Mistake("image", f"{WORKER}{CONTAINER}/image", "sparsight:latest"),
    Mistake("image", f"{SINGLE}/containers/0/image", "sparsight", **NIGHTLY),
    Mistake("image", f"{WORKER}{CONTAINER}/image", "sparsight:other"),
    Mistake("network", "/spec/podSelector", {"matchLabels": {"a": "b"}}, target="NetworkPolicy/nothing-by-default"),
    Mistake("network", "/spec/ingress/0/from", [], target="NetworkPolicy/within-ray"),
    Mistake("network", "/spec/ingress/0/from/0", {"ipBlock": {"cidr": "10.0.0.0/8"}}, target="NetworkPolicy/dashboard"),
    remove("network", "/spec/ingress/0/ports", target="NetworkPolicy/metrics"),
    remove("network", "/spec/egress/0/to/0/ipBlock/except", target="NetworkPolicy/outside"),
    Mistake("network", f"{WORKER}/template/metadata/labels/sparsight~1part", "other"),
    remove("metrics", f"{WORKER}{CONTAINER}/ports"),
    Mistake("metrics", "/spec/podMetricsEndpoints/0/port", "metric", target="PodMonitor/sparsight-workers"),
    Mistake("metrics", "/spec/selector/matchLabels/sparsight~1part", "x", target="PodMonitor/sparsight-workers"),
    remove("metrics", "/spec/ingress/0/ports/1", target="NetworkPolicy/metrics"),
    Mistake("references", f"{WORKER}/template/spec/serviceAccountName", "default"),
    Mistake("references", "/metadata/name", "other", target="PersistentVolumeClaim/sparsight-cache"),
    Mistake("references", f"{WORKER}{CONTAINER}/volumeMounts/-", {"name": "data", "mountPath": "/data"}),
    Mistake("references", "/metadata/namespace", "default"),
    remove("references", "/metadata/namespace", target="ConfigMap/sparsight-environment"),
    Mistake("references", "/metadata/name", "other", target="ConfigMap/sparsight-environment"),
    Mistake("folders", f"{WORKER}{CONTAINER}/env/0/value", "/root"),
    remove("folders", f"{WORKER}{CONTAINER}/volumeMounts/2"),
    remove("folders", f"{WORKER}/template/spec/volumes/1/emptyDir/sizeLimit"),
    Mistake("folders", "/spec/accessModes", ["ReadWriteOnce"], target="PersistentVolumeClaim/sparsight-cache"),
    remove("folders", f"{SINGLE}/containers/0/volumeMounts/3", **NIGHTLY),
    Mistake("threads", f"{WORKER}{CONTAINER}/env/1/value", "8"),
    Mistake("grace", f"{WORKER}/template/spec/terminationGracePeriodSeconds", 30),
    remove("grace", "/data/RAY_JOB_STOP_WAIT_TIME_S", target="ConfigMap/sparsight-environment"),
    remove("ends", "/spec/activeDeadlineSeconds"),
    remove("ends", "/spec/ttlSecondsAfterFinished"),
    Mistake("ends", "/spec/concurrencyPolicy", "Allow", **NIGHTLY),
    Mistake("spot", f"{HEAD}/template/spec/nodeSelector/karpenter.sh~1capacity-type", "spot"),
]  # fmt: skip


@cache
def rendered(overlay: str):
    (folder,) = [path for path in OVERLAYS if path.name == overlay]
    return render(folder)


@pytest.mark.parametrize("overlay", [path.name for path in OVERLAYS])
def test_an_overlay_has_no_problem(overlay) -> None:
    assert check(rendered(overlay)) == []


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_is_refused_by_its_rule(mistake) -> None:
    objects = copy.deepcopy(rendered(mistake.overlay))
    kind, name = mistake.target.split("/")
    (target,) = [one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    operation = {"op": mistake.op, "path": mistake.path, "value": mistake.value}
    patch_object(target, operation, where="mistake")
    assert mistake.rule in {problem.rule for problem in check(objects)}


def test_every_rule_has_a_mistake() -> None:
    assert {mistake.rule for mistake in MISTAKES} == {"schema", *RULES}


def test_an_overlay_that_is_wrong_fails_the_check(tmp_path, capsys) -> None:
    (tmp_path / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [pod.yaml]\n"
    )
    (tmp_path / "pod.yaml").write_text(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {container: []}\n"
    )
    assert main([str(tmp_path)]) == 1
    assert "[schema] Pod/p" in capsys.readouterr().err
    (tmp_path / "pod.yaml").unlink()
    assert main([str(tmp_path)]) == 1
    assert "pod.yaml" in capsys.readouterr().err


def test_every_file_of_k8s_is_part_of_an_overlay() -> None:
    used = set()

    def visit(folder) -> None:
        import yaml

        content = yaml.safe_load((folder / "kustomization.yaml").read_text())
        used.add(folder / "kustomization.yaml")
        for name in [*content.get("resources", []), *content.get("components", [])]:
            path = (folder / name).resolve()
            visit(path) if path.is_dir() else used.add(path)

    for overlay in OVERLAYS:
        visit(overlay)
    assert used == set((ROOT / "k8s").rglob("*.yaml"))


def test_a_study_and_its_submitter_fit_the_quota() -> None:
    from tests.k8s.rules import _bytes, _cores

    (queue,) = [one for one in rendered("kueue") if one["kind"] == "ClusterQueue"]
    quota = {
        one["name"]: one["nominalQuota"]
        for one in queue["spec"]["resourceGroups"][0]["flavors"][0]["resources"]
    }
    wanted = {"cpu": 0.0, "memory": 0.0, "ephemeral-storage": 0.0}
    for pod in pods(rendered("cloud-kueue")):
        replicas = 1 if pod.group is None else pod.group.get("replicas", 1)
        for name, amount in pod.container["resources"]["requests"].items():
            wanted[name] += replicas * (_cores(amount) if name == "cpu" else _bytes(amount))
    assert wanted["cpu"] <= _cores(quota["cpu"]) / 2
    assert wanted["memory"] <= _bytes(quota["memory"]) / 2
    assert wanted["ephemeral-storage"] <= _bytes(quota["ephemeral-storage"]) / 2
    assert all(
        cluster.spec["enableInTreeAutoscaling"] is False
        for cluster in clusters(rendered("cloud-kueue"))
    )
