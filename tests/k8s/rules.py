"""What a schema cannot say: the operator's own rules, and ours. Each rule reads all objects of one rendering.

The operator's are those of KubeRay 1.7.0 (ray-operator/controllers/ray/utils/validation.go) that can be told from a
manifest, and of Kueue 0.19.2 (its webhooks for RayJob); an API server runs none of them before the object is there.
"""

import contextlib
import importlib
import io
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import tyro

from cluster.stopping import GRACE_S
from jobs.main import VERBS
from jobs.recipes import PIPELINES
from tests.k8s import schemas
from tests.k8s.render import Object, label

ROOT = Path(__file__).parents[2]
NAMESPACE = "sparsight"
CLUSTER_WIDE = {"Namespace", "ClusterQueue", "ResourceFlavor"}
SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL", re.IGNORECASE)
Rule = Callable[[list[Object]], Iterator[str]]
RULES: dict[str, Rule] = {}


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and by which rule."""

    rule: str
    what: str


def check(objects: list[Object]) -> list[Problem]:
    """Everything that is wrong with a rendering; rules are not asked about objects that break their schema."""
    found = [
        Problem("schema", f"{label(one)}: {what}")
        for one in objects
        for what in schemas.problems(one)
    ]
    if found:
        return found
    found = [
        Problem("schema", f"{pod.where}: {what}")
        for pod in pods(objects)
        for what in schemas.pod_problems(pod.template)
    ]
    return found or [Problem(name, what) for name, rule in RULES.items() for what in rule(objects)]


def _rule(name: str) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        RULES[name] = rule
        return rule

    return add


# --- what manifests consist of


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """The template of a pod, and what it is of."""

    where: str
    role: str
    """head, worker, submitter or single."""
    template: Object
    group: Object | None = None
    """Its group, if it is of a Ray cluster."""

    @property
    def spec(self) -> Object:
        return self.template["spec"]

    @property
    def container(self) -> Object:
        """The first: Ray's, or the only one."""
        return self.spec["containers"][0]

    @property
    def labels(self) -> dict[str, str]:
        """With those that KubeRay adds."""
        own = self.template.get("metadata", {}).get("labels", {})
        return {**own, "ray.io/node-type": self.role} if self.group is not None else own


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A Ray cluster, of a job or by itself."""

    where: str
    spec: Object
    job: Object | None

    @property
    def autoscales(self) -> bool:
        return bool(self.spec.get("enableInTreeAutoscaling"))

    @property
    def workers(self) -> list[Object]:
        return self.spec.get("workerGroupSpecs", [])


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [one for one in objects if one["kind"] == kind]


def clusters(objects: list[Object]) -> Iterator[Cluster]:
    for one in of_kind(objects, "RayCluster"):
        yield Cluster(where=label(one), spec=one["spec"], job=None)
    for one in of_kind(objects, "RayJob"):
        if "rayClusterSpec" in one["spec"]:
            yield Cluster(where=label(one), spec=one["spec"]["rayClusterSpec"], job=one)


def pods(objects: list[Object]) -> Iterator[Pod]:
    for cluster in clusters(objects):
        head = cluster.spec["headGroupSpec"]
        yield Pod(where=f"{cluster.where} head", role="head", template=head["template"], group=head)
        for group in cluster.workers:
            where = f"{cluster.where} {group['groupName']}"
            yield Pod(where=where, role="worker", template=group["template"], group=group)
    for one in of_kind(objects, "RayJob"):
        if template := one["spec"].get("submitterPodTemplate"):
            yield Pod(where=f"{label(one)} submitter", role="submitter", template=template)
    for one in of_kind(objects, "CronJob"):
        template = one["spec"]["jobTemplate"]["spec"]["template"]
        yield Pod(where=label(one), role="single", template=template)


def _environment(container: Object) -> list[str]:
    return [variable["name"] for variable in container.get("env", [])]


# --- the operator's rules


@_rule("name")
def _names(objects: list[Object]) -> Iterator[str]:
    for kind, longest in (("RayCluster", 53), ("RayJob", 47)):
        for one in of_kind(objects, kind):
            name = one["metadata"]["name"]
            if len(name) > longest or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
                yield f"{label(one)}: a DNS-1035 label of at most {longest} characters is wanted"


@_rule("job-end")
def _job_end(objects: list[Object]) -> Iterator[str]:
    for job in of_kind(objects, "RayJob"):
        spec, where = job["spec"], label(job)
        ends = spec.get("shutdownAfterJobFinishes", False)
        if not ends and (spec.get("ttlSecondsAfterFinished", 0) > 0 or spec.get("suspend")):
            yield f"{where}: ttlSecondsAfterFinished and suspend need shutdownAfterJobFinishes"
        for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
            if spec.get(name, 1) <= 0:
                yield f"{where}: {name} {spec[name]}: must be positive"
        for name in ("backoffLimit", "ttlSecondsAfterFinished"):
            if spec.get(name, 0) < 0:
                yield f"{where}: {name} {spec[name]}: must not be negative"


@_rule("deletion")
def _deletion(objects: list[Object]) -> Iterator[str]:
    for job in of_kind(objects, "RayJob"):
        spec, where = job["spec"], label(job)
        strategy = spec.get("deletionStrategy")
        if strategy is None:
            continue
        rules = strategy.get("deletionRules", [])
        legacy = {"onSuccess", "onFailure"} & set(strategy)
        if rules and spec.get("shutdownAfterJobFinishes"):
            yield f"{where}: deletionRules and shutdownAfterJobFinishes exclude each other"
        if rules and legacy:
            yield f"{where}: deletionRules and onSuccess or onFailure exclude each other"
        if not rules and legacy != {"onSuccess", "onFailure"}:
            yield f"{where}: deletionStrategy needs deletionRules, or both onSuccess and onFailure"
        ttl: dict[tuple[str, str], dict[str, int]] = {}
        for one in rules:
            told = {key: value for key, value in one["condition"].items() if key != "ttlSeconds"}
            if len(told) != 1:
                yield f"{where}: a deletion rule has one of jobStatus and jobDeploymentStatus"
                continue
            if one["policy"] == "DeleteWorkers" and spec.get("rayClusterSpec", {}).get(
                "enableInTreeAutoscaling"
            ):
                yield f"{where}: DeleteWorkers does not go with autoscaling"
            of_state = ttl.setdefault(next(iter(told.items())), {})
            if one["policy"] in of_state:
                yield f"{where}: two rules for {one['policy']} in one state"
            of_state[one["policy"]] = one["condition"].get("ttlSeconds", 0)
        for of_state in ttl.values():
            order = [
                name
                for name in ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
                if name in of_state
            ]
            for first, second in pairwise(order):
                if of_state[first] > of_state[second]:
                    yield f"{where}: {first} must not come after {second}"


@_rule("submission")
def _submission(objects: list[Object]) -> Iterator[str]:
    for job in of_kind(objects, "RayJob"):
        spec, where = job["spec"], label(job)
        mode = spec.get("submissionMode", "K8sJobMode")
        known = (
            "K8sJobMode",
            "HTTPMode",
            "SidecarMode",
            "InteractiveMode",
        )  # no enum in the schema
        if mode not in known:
            yield f"{where}: submissionMode {mode!r}; wanted one of {', '.join(known)}"
        if mode == "SidecarMode" and {"submitterPodTemplate", "submitterConfig"} & set(spec):
            yield f"{where}: SidecarMode has no submitterPodTemplate and no submitterConfig"
        if mode == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
            yield f"{where}: InteractiveMode has no backoffLimit"
        selector = spec.get("clusterSelector")
        if not selector and "rayClusterSpec" not in spec:
            yield f"{where}: neither rayClusterSpec nor clusterSelector"
        if selector and (
            spec.get("backoffLimit", 0) > 0 or spec.get("suspend") or mode == "SidecarMode"
        ):
            yield f"{where}: clusterSelector excludes backoffLimit, suspend and SidecarMode"
        if mode == "K8sJobMode" and "submitterPodTemplate" not in spec:
            yield f"{where}: KubeRay's own submitter is refused by a restricted namespace; give submitterPodTemplate"


@_rule("autoscaler")
def _autoscaler(objects: list[Object]) -> Iterator[str]:
    for cluster in clusters(objects):
        head = cluster.spec["headGroupSpec"]["template"]["spec"]
        options = cluster.spec.get("autoscalerOptions", {})
        by_environment = "RAY_enable_autoscaler_v2" in _environment(head["containers"][0])
        if not cluster.autoscales:
            if options or by_environment:
                yield f"{cluster.where}: settings of an autoscaler, but enableInTreeAutoscaling is not set"
            for group in cluster.workers:
                if not {"minReplicas", "maxReplicas"} <= set(group):
                    yield f"{cluster.where} {group['groupName']}: without autoscaling, minReplicas and maxReplicas"
                if "idleTimeoutSeconds" in group:
                    yield f"{cluster.where} {group['groupName']}: idleTimeoutSeconds is for the autoscaler, version v2"
            continue
        if options.get("version") != "v2" or by_environment:
            yield f"{cluster.where}: autoscalerOptions.version v2 is wanted, and not by the environment"
        for group in cluster.workers:
            if group.get("suspend"):
                yield f"{cluster.where} {group['groupName']}: a suspended group does not go with autoscaling"
        for pod in pods(objects):
            mine = pod.where.startswith(cluster.where) and pod.group is not None
            if mine and pod.spec.get("restartPolicy", "Never") != "Never":
                yield f"{pod.where}: restartPolicy must be Never with autoscaler v2"


@_rule("replicas")
def _replicas(objects: list[Object]) -> Iterator[str]:
    for cluster in clusters(objects):
        for group in cluster.workers:
            low, now, high = (
                group.get(key, -1) for key in ("minReplicas", "replicas", "maxReplicas")
            )
            if not 0 <= low <= now <= high:
                where = f"{cluster.where} {group['groupName']}"
                yield f"{where}: 0 <= minReplicas {low} <= replicas {now} <= maxReplicas {high}"


@_rule("gates")
def _gates(objects: list[Object]) -> Iterator[str]:
    for cluster in clusters(objects):
        for name in ("networkPolicy", "tlsOptions", "historyServerOptions"):
            if name in cluster.spec:
                yield f"{cluster.where}: {name} needs a gate of KubeRay 1.7 that is off by default"


@_rule("group-resources")
def _group_resources(objects: list[Object]) -> Iterator[str]:
    for pod in pods(objects):
        if pod.group is None:
            continue
        start = pod.group.get("rayStartParams", {})
        if pod.group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(
            start
        ):
            yield f"{pod.where}: resources both in rayStartParams and in the group"
        if "labels" in start:
            yield f"{pod.where}: rayStartParams.labels; a group has labels of its own"


@_rule("token")
def _token(objects: list[Object]) -> Iterator[str]:
    pinned = _pinned_ray()
    for cluster in clusters(objects):
        options = cluster.spec.get("authOptions", {})
        if options.get("mode") != "token":
            yield f"{cluster.where}: authOptions.mode token: without it whoever reaches the head runs code on it"
        if options.get("enableK8sTokenAuth"):
            yield f"{cluster.where}: enableK8sTokenAuth: not for jobs"
        if cluster.spec.get("rayVersion") != pinned:
            yield f"{cluster.where}: rayVersion {cluster.spec.get('rayVersion')}; pyproject.toml pins {pinned}"
        for pod in pods(objects):
            if pod.where.startswith(cluster.where) and "RAY_AUTH_MODE" in _environment(
                pod.container
            ):
                yield f"{pod.where}: RAY_AUTH_MODE would go before authOptions"


@_rule("kueue")
def _kueue(objects: list[Object]) -> Iterator[str]:
    queues = {one["metadata"]["name"] for one in of_kind(objects, "LocalQueue")}
    for job in of_kind(objects, "RayJob"):
        queue = job["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
        if queue is None:
            if queues:
                yield f"{label(job)}: beside a queue, but of none"
            continue
        if queue not in queues:
            yield f"{label(job)}: of queue {queue!r}, which is not among {sorted(queues)}"
        cluster = job["spec"].get("rayClusterSpec", {})
        if cluster.get("enableInTreeAutoscaling"):
            yield f"{label(job)}: a job of a queue does not autoscale, unless a gate of Kueue is on"
        if not job["spec"].get("shutdownAfterJobFinishes"):
            yield f"{label(job)}: a job of a queue ends with shutdownAfterJobFinishes"
        names = [group["groupName"] for group in cluster.get("workerGroupSpecs", [])]
        if "head" in names or len(names) > 17:
            yield f"{label(job)}: at most 17 groups of workers, none called head"


def _pinned_ray() -> str:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (ray,) = [one for one in dependencies if one.startswith("ray[")]
    return ray.partition("==")[2]


# --- ours


@_rule("hardened")
def _hardened(objects: list[Object]) -> Iterator[str]:
    for pod in pods(objects):
        context = pod.spec.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{pod.where}: runAsNonRoot and runAsUser above 0"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{pod.where}: seccompProfile RuntimeDefault"
        for name in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(name):
                yield f"{pod.where}: {name}"
        for container in [*pod.spec["containers"], *pod.spec.get("initContainers", [])]:
            where = f"{pod.where}, {container['name']}"
            yield from _container_problems(where, container.get("securityContext", {}))
            if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
                yield f"{where}: readOnlyRootFilesystem"
        if pod.role != "head" and pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.where}: automountServiceAccountToken false: it has no business with the API server"
        for volume in pod.spec.get("volumes", []):
            if "hostPath" in volume:
                yield f"{pod.where}: volume {volume['name']} is a folder of the node"
    for cluster in clusters(objects):
        if cluster.autoscales:
            context = cluster.spec.get("autoscalerOptions", {}).get("securityContext", {})
            yield from _container_problems(f"{cluster.where} autoscaler", context)
    for one in of_kind(objects, "Namespace"):
        if (
            one["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
            != "restricted"
        ):
            yield f"{label(one)}: pod-security.kubernetes.io/enforce restricted"


def _container_problems(where: str, context: Object) -> Iterator[str]:
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield f"{where}: allowPrivilegeEscalation false, and not privileged"
    if context.get("capabilities", {}) != {"drop": ["ALL"]}:
        yield f"{where}: capabilities drop ALL, add none"


@_rule("resources")
def _resources(objects: list[Object]) -> Iterator[str]:
    for pod in pods(objects):
        for container in pod.spec["containers"]:
            resources = container.get("resources", {})
            requests, limits = resources.get("requests", {}), resources.get("limits", {})
            where = f"{pod.where}, {container['name']}"
            for name in ("memory", "ephemeral-storage", "nvidia.com/gpu"):
                if requests.get(name) != limits.get(name) or (
                    name not in requests and "/" not in name
                ):
                    yield f"{where}: {name}: a request, and a limit that is the same"
            if "cpu" not in requests or "cpu" in limits:
                yield f"{where}: a request for cpu, and no limit on it"
        start = {} if pod.group is None else pod.group.get("rayStartParams", {})
        requests = pod.container.get("resources", {}).get("requests", {})
        if pod.role == "head" and (start.get("num-cpus") != "0" or "nvidia.com/gpu" in requests):
            yield f"{pod.where}: num-cpus 0 and no GPU: a head is for the driver"
        if pod.role == "worker":
            cores = _cores(requests.get("cpu", "0"))
            if not cores <= float(start.get("num-cpus", -1)) <= cores + 1:
                yield f"{pod.where}: num-cpus {start.get('num-cpus')} for {cores:g} cores; as many, or one more"
            if start.get("num-gpus", "0") != str(requests.get("nvidia.com/gpu", "0")):
                yield f"{pod.where}: num-gpus {start.get('num-gpus')}, but {requests.get('nvidia.com/gpu')} GPUs"
        if pod.group is not None:
            store = int(start.get("object-store-memory", 0))
            if not 0 < store <= _bytes(requests.get("memory", "0")) // 4:
                yield f"{pod.where}: object-store-memory {store}: at most a quarter of the memory; it is a part of it"


def _cores(amount: object) -> float:
    text = str(amount)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def _bytes(amount: object) -> int:
    text = str(amount)
    if not (found := re.fullmatch(r"(\d+)([KMGT]i)?", text)):
        raise ValueError(f"an amount of {text!r}; wanted a whole number of Ki, Mi, Gi or Ti")
    return int(found[1]) << {None: 0, "Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}[found[2]]


@_rule("command")
def _command(objects: list[Object]) -> Iterator[str]:
    for job in of_kind(objects, "RayJob"):
        entry = job["spec"].get("entrypoint", "")
        if "$" in entry or "`" in entry or ";" in entry:
            yield f"{label(job)}: the submitter's shell would read {entry!r} first; write it out"
            continue
        ours = [
            pod
            for pod in pods(objects)
            if pod.where.startswith(label(job)) and pod.group is not None
        ]
        yield from _words_problems(label(job), shlex.split(entry), ours)
    for pod in pods(objects):
        if pod.role == "single":
            words = [*pod.container.get("command", []), *pod.container.get("args", [])]
            yield from _words_problems(pod.where, words, [pod])


def _words_problems(where: str, words: list[str], ours: list[Pod]) -> Iterator[str]:
    if words[:3] != ["python", "-m", "jobs.main"] or len(words) < 4 or words[3] not in VERBS:
        yield f"{where}: {' '.join(words)!r}; wanted python -m jobs.main VERB"
        return
    verb, arguments = words[3], words[4:]
    config, refusal = _parsed(verb, tuple(arguments))
    if refusal:
        yield f"{where}: sparsight {verb} refuses its arguments: {refusal}"
        return
    if not config.store.startswith("s3://"):
        for pod in ours:
            mounts = [mount["mountPath"] for mount in pod.container.get("volumeMounts", [])]
            if config.store not in mounts:
                yield f"{where}: store {config.store!r} is no volume of {pod.where}; name s3://... or mount it"
    if config.actors is None:
        yield f"{where}: --actors: by default as many as the head has cores"
        return
    workers = [pod for pod in ours if pod.role == "worker" and pod.group is not None]
    if not workers:  # of a single pod; Ray starts in it with a CPU more than it has actors
        cores = sum(_cores(pod.container["resources"]["requests"]["cpu"]) for pod in ours)
        if config.actors > cores:
            yield f"{where}: {config.actors} actors on {cores:g} cores"
        return
    gpus = getattr(config, "gpus_per_trial", 0.0)
    first = sum(_started(pod, "num-gpus") for pod in workers)
    if first < gpus:
        yield f"{where}: {gpus:g} GPUs a trial, but Ray starts with {first:g}, and the job would be refused"
    if first < (of_actors := config.actors * getattr(config, "gpus_per_actor", 0.0)):
        yield f"{where}: {of_actors:g} GPUs for actors, but Ray starts with {first:g}, and the job would be refused"
    # trials of a sweep may wait for each other, and for nodes that the autoscaler brings; a pool may not
    is_pool = verb != "sweep" or not gpus
    if is_pool and config.actors + 1 > (cpus := sum(_started(pod, "num-cpus") for pod in workers)):
        yield f"{where}: {config.actors} actors and one CPU for Ray Data, but Ray starts with {cpus:g}"


def _started(pod: Pod, what: str) -> float:
    """What a group has that no autoscaler takes away."""
    assert pod.group is not None
    return pod.group["minReplicas"] * float(pod.group["rayStartParams"].get(what, 0))


@cache
def _parsed(verb: str, arguments: tuple[str, ...]) -> tuple[Any, str]:
    """The configuration of a verb, or why its own parser refuses the arguments."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            if verb == "pipeline":
                return tyro.extras.overridable_config_cli(PIPELINES, args=list(arguments)), ""
            module = importlib.import_module(VERBS[verb][0])
            return tyro.cli(module.Config, args=list(arguments)), ""
    except ValueError as error:
        return None, str(error)
    except SystemExit:
        return None, " ".join(re.sub(r"[^\w\s.:,=/-]", " ", said.getvalue()).split())


@_rule("secrets")
def _secrets(objects: list[Object]) -> Iterator[str]:
    for one in of_kind(objects, "Secret"):
        yield f"{label(one)}: secrets are made by hand, or by a manager of secrets, and not kept in files"
    for one in of_kind(objects, "ConfigMap"):
        for key in one.get("data", {}):
            if SECRET_NAME.search(key):
                yield f"{label(one)}: {key} sounds like a secret"
    for pod in pods(objects):
        for container in pod.spec["containers"]:
            for variable in container.get("env", []):
                if SECRET_NAME.search(variable["name"]) and "value" in variable:
                    yield f"{pod.where}: {variable['name']} is written out; name a secret"
            named = [
                source["secretRef"]
                for source in container.get("envFrom", [])
                if "secretRef" in source
            ]
            for secret in named:
                if secret["name"] == "sparsight-wandb" and pod.role in ("worker", "submitter"):
                    yield f"{pod.where}: only a driver talks to W&B and has its key"
                if not secret.get("optional"):
                    yield f"{pod.where}: secret {secret['name']} must be optional: not everybody has one"
    for job in of_kind(objects, "RayJob"):
        if "env_vars" in job["spec"].get("runtimeEnvYAML", ""):
            yield f"{label(job)}: a runtime environment with variables is shown by the dashboard"


@_rule("image")
def _image(objects: list[Object]) -> Iterator[str]:
    for cluster in clusters(objects):
        ours = [pod for pod in pods(objects) if pod.where.startswith(cluster.where)]
        if len({pod.container["image"] for pod in ours}) > 1:
            yield f"{cluster.where}: head, workers and submitter have different images"
    for pod in pods(objects):
        for container in pod.spec["containers"]:
            tag = (
                container["image"].partition("@")[2]
                or container["image"].rpartition("/")[2].partition(":")[2]
            )
            if tag in ("", "latest"):
                yield f"{pod.where}: image {container['image']!r}: a digest or a tag is wanted, and not latest"


@_rule("network")
def _network(objects: list[Object]) -> Iterator[str]:
    policies = of_kind(objects, "NetworkPolicy")
    closed = any(
        one["spec"]["podSelector"] == {}
        and set(one["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        and not {"ingress", "egress"} & set(one["spec"])
        for one in policies
    )
    if not closed and any(True for _ in pods(objects)):
        yield "no NetworkPolicy that closes the namespace both ways"
    for one in policies:
        for rule in [*one["spec"].get("ingress", []), *one["spec"].get("egress", [])]:
            peers = rule.get("from", rule.get("to", []))
            if not peers or {} in peers:
                yield f"{label(one)}: a rule for everybody; name from or to"
            for peer in peers:
                block = peer.get("ipBlock", {})
                if block.get("cidr") == "0.0.0.0/0" and "169.254.0.0/16" not in block.get(
                    "except", []
                ):
                    yield f"{label(one)}: reaches 169.254.0.0/16, where machines keep their credentials"
                outside = peer.get("namespaceSelector", {}).get("matchLabels", {})
                if "ingress" in one["spec"] and "ipBlock" in peer:
                    yield f"{label(one)}: lets addresses in; name pods"
                if "ingress" in one["spec"] and outside and "ports" not in rule:
                    yield f"{label(one)}: lets another namespace in at every port"
    for pod in pods(objects):
        kinds: set[str] = set()
        for one in policies:
            if _selects(one["spec"]["podSelector"], pod.labels):
                kinds |= {key for key in ("ingress", "egress") if key in one["spec"]}
        wanted = {"egress"} if pod.role in ("submitter", "single") else {"ingress", "egress"}
        if not wanted <= kinds:
            yield f"{pod.where}: labels {pod.labels} are let {sorted(kinds) or 'nowhere'}; sparsight/part is wanted"


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    """Policies of the whole namespace do not count: they name nobody."""
    expressions = selector.get("matchExpressions", [])
    wanted = selector.get("matchLabels", {})
    return bool(selector) and (
        all(labels.get(key) == value for key, value in wanted.items())
        and all(
            labels.get(one["key"]) in one["values"]
            for one in expressions
            if one["operator"] == "In"
        )
    )


@_rule("metrics")
def _metrics(objects: list[Object]) -> Iterator[str]:
    ours = list(pods(objects))
    numbers: dict[str, set[int]] = {}
    for pod in ours:
        if pod.group is None:
            continue
        ports = {port.get("name"): port["containerPort"] for port in pod.container.get("ports", [])}
        if ports.get("metrics") != 8080:
            yield f"{pod.where}: port 8080 is to be called metrics: KubeRay serves metrics there"
        for name, number in ports.items():
            if str(name).endswith("metrics"):
                numbers.setdefault(pod.role, set()).add(number)
    for monitor in of_kind(objects, "PodMonitor"):
        selector = monitor["spec"]["selector"]
        chosen = [pod for pod in ours if _selects(selector, pod.labels)]
        if not chosen:
            yield f"{label(monitor)}: selects no pod"
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            for pod in chosen:
                if endpoint["port"] not in {
                    port.get("name") for port in pod.container.get("ports", [])
                }:
                    yield f"{label(monitor)}: {pod.where} has no port {endpoint['port']!r}"
    let_in = {
        port["port"]
        for one in of_kind(objects, "NetworkPolicy")
        for rule in one["spec"].get("ingress", [])
        if any(
            peer.get("namespaceSelector", {})
            .get("matchLabels", {})
            .get("kubernetes.io/metadata.name")
            == "monitoring"
            for peer in rule.get("from", [])
        )
        for port in rule.get("ports", [])
    }
    for role, wanted in numbers.items():
        if missing := wanted - let_in:
            yield f"{role}: Prometheus is not let in at {sorted(missing)}"


@_rule("references")
def _references(objects: list[Object]) -> Iterator[str]:
    def names(kind: str) -> set[str]:
        return {one["metadata"]["name"] for one in of_kind(objects, kind)}

    accounts, claims, maps = (
        names("ServiceAccount"),
        names("PersistentVolumeClaim"),
        names("ConfigMap"),
    )
    for pod in pods(objects):
        if pod.spec.get("serviceAccountName") not in accounts:
            yield f"{pod.where}: account {pod.spec.get('serviceAccountName')!r} is not among {sorted(accounts)}"
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        for name, volume in volumes.items():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None and claim not in claims:
                yield f"{pod.where}: volume {name}: claim {claim!r} is not among {sorted(claims)}"
        for container in pod.spec["containers"]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{pod.where}: mounts {mount['name']!r}, which is none of its volumes"
            for source in container.get("envFrom", []):
                if "configMapRef" in source and source["configMapRef"]["name"] not in maps:
                    yield f"{pod.where}: config map {source['configMapRef']['name']!r} is not among {sorted(maps)}"
    for one in objects:
        namespace = one["metadata"].get("namespace")
        wanted = None if one["kind"] in CLUSTER_WIDE else NAMESPACE
        if namespace != wanted:
            yield f"{label(one)}: namespace {namespace}, wanted {wanted}"


@_rule("folders")
def _folders(objects: list[Object]) -> Iterator[str]:
    """With a root that is read-only, what is written to must be mounted; what pods share, all must be able to write."""
    claims = {one["metadata"]["name"]: one for one in of_kind(objects, "PersistentVolumeClaim")}
    for pod in pods(objects):
        mounts = {mount["mountPath"] for mount in pod.container.get("volumeMounts", [])}
        variables = {one["name"]: one.get("value") for one in pod.container.get("env", [])}
        if variables.get("HOME") not in mounts or "/tmp" not in mounts:
            yield f"{pod.where}: HOME {variables.get('HOME')} and /tmp must be volumes"
        if pod.role != "submitter" and variables.get("SPARSIGHT_CACHE") not in mounts:
            yield f"{pod.where}: SPARSIGHT_CACHE {variables.get('SPARSIGHT_CACHE')} must be a volume"
        if pod.role == "single" and "/dev/shm" not in mounts:
            yield f"{pod.where}: /dev/shm: without a volume it has 64 MiB"
        for volume in pod.spec.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{pod.where}: volume {volume['name']} has no sizeLimit"
            claim = claims.get(volume.get("persistentVolumeClaim", {}).get("claimName"))
            if claim is None:
                continue
            one_node = claim["metadata"].get("labels", {}).get("sparsight/nodes") == "one"
            if claim["spec"]["accessModes"] != ["ReadWriteMany"] and not one_node:
                yield f"{label(claim)}: {pod.where} and others share it; ReadWriteMany, or label sparsight/nodes one"


@_rule("threads")
def _threads(objects: list[Object]) -> Iterator[str]:
    for pod in pods(objects):
        variables = {one["name"]: one.get("value") for one in pod.container.get("env", [])}
        if pod.role != "submitter" and variables.get("OMP_NUM_THREADS") != "1":
            yield f"{pod.where}: OMP_NUM_THREADS 1: there is an actor for every core"


@_rule("grace")
def _grace(objects: list[Object]) -> Iterator[str]:
    wanted = GRACE_S + 15
    for pod in pods(objects):
        grace = pod.spec.get("terminationGracePeriodSeconds", 30)
        if pod.role != "submitter" and grace < wanted:
            yield f"{pod.where}: {grace} s to end in; a pool takes {GRACE_S:g}, and Ray some more"
    for one in of_kind(objects, "ConfigMap"):
        if one["metadata"]["name"] == "sparsight-environment":
            waits = float(one["data"].get("RAY_JOB_STOP_WAIT_TIME_S", 3))
            if waits < wanted:
                yield f"{label(one)}: RAY_JOB_STOP_WAIT_TIME_S {waits:g}; a pool takes {GRACE_S:g}"


@_rule("ends")
def _ends(objects: list[Object]) -> Iterator[str]:
    """Nothing that costs money runs for ever, but a cluster that is made by hand."""
    for job in of_kind(objects, "RayJob"):
        wanted = {
            "activeDeadlineSeconds",
            "preRunningDeadlineSeconds",
            "ttlSecondsAfterFinished",
            "backoffLimit",
        }
        if missing := sorted(wanted - set(job["spec"])):
            yield f"{label(job)}: {', '.join(missing)} must be set"
        if not job["spec"].get("shutdownAfterJobFinishes"):
            yield f"{label(job)}: shutdownAfterJobFinishes"
    for one in of_kind(objects, "CronJob"):
        spec = one["spec"]["jobTemplate"]["spec"]
        if missing := sorted(
            {"activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"} - set(spec)
        ):
            yield f"{label(one)}: {', '.join(missing)} must be set"
        if one["spec"].get("concurrencyPolicy") != "Forbid":
            yield f"{label(one)}: concurrencyPolicy Forbid: a second study of the same name would do the same work"


@_rule("spot")
def _spot(objects: list[Object]) -> Iterator[str]:
    for pod in pods(objects):
        places = " ".join(
            f"{key}={value}" for key, value in pod.spec.get("nodeSelector", {}).items()
        )
        if pod.role == "head" and re.search(r"=spot\b|spot=true", places):
            yield f"{pod.where}: {places}: with its driver a job ends; keep heads off machines that are taken away"
