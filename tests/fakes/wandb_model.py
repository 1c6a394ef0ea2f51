"""What a W&B server keeps, in memory: runs, files, artifacts, and the answers to what its client asks about them.

Every object is a dict under the names of the GraphQL schema; names with an underscore are of this file. Equal artifacts
are one version and only committed ones are seen, as on the real server.
"""

import base64
import hashlib
import itertools
import json
import threading
import time
import urllib.parse
from collections.abc import Iterable, Sequence
from typing import Any

Object = dict[str, Any]
FEATURES = (
    "LARGE_FILENAMES",
    "ARTIFACT_TAGS",
    "CLIENT_IDS",
    "ARTIFACT_COLLECTION_MEMBERSHIP_FILES",
    "USE_ARTIFACT_WITH_ENTITY_AND_PROJECT_INFORMATION",
    "PROJECT_ARTIFACT_COLLECTION_MEMBERSHIP",
    "ARTIFACT_MEMBERSHIP_IN_LINK_ARTIFACT_RESPONSE",
    "TOTAL_COUNT_IN_FILE_CONNECTION",
    "MARK_RUN_FILES_UPLOADED",
    "ARTIFACT_V2_DOWNLOAD_HANDLER_SUPPORTS_ARTIFACT_ID",
)
RUN_FIELDS = {
    "groupName": "group",
    "jobType": "jobType",
    "displayName": "displayName",
    "notes": "notes",
    "tags": "tags",
    "state": "state",
    "commit": "commit",
    "description": "description",
}
"""Field of UpsertBucketInput -> field of a run."""
IGNORED_RUN_FIELDS = {"repo", "host", "program", "jobProgram", "jobRepo", "debug", "sweep"}


class WandbModel:
    def __init__(self, base_url: str, entity: str = "acme") -> None:
        self.base_url = base_url
        self.entity = entity
        self.lock = threading.RLock()
        self.projects: dict[tuple[str, str], Object] = {}
        self.runs: dict[tuple[str, str, str], Object] = {}
        self.artifacts: dict[str, Object] = {}
        self.collections: dict[tuple[str, str, str], Object] = {}
        self.blobs: dict[str, bytes] = {}
        """Path below /storage -> content."""
        self._numbers = itertools.count(1)
        self._id_of_client_id: dict[str, str] = {}

    # --- what tests look at

    def run(self, name: str) -> Object:
        """A run by its display name, or else by its id."""
        (found,) = (run for run in self.runs.values() if name in (run["displayName"], run["name"]))
        return found

    def versions(self, collection: str) -> list[Object]:
        """Committed versions of a collection, oldest first."""
        (found,) = (one for (_, _, name), one in self.collections.items() if name == collection)
        return [one for one in found["_versions"] if one["state"] == "COMMITTED"]

    def content(self, artifact: Object) -> dict[str, bytes]:
        """Files of an artifact."""
        return {
            path: self.blobs[f"storage/{entry['birthArtifactID']}/{path}"]
            for path, entry in self._entries(artifact).items()
        }

    # --- projects and runs

    def project(self, entity: str | None, name: str, *, create: bool = False) -> Object | None:
        entity = entity or self.entity
        if (entity, name) not in self.projects and create:
            self.projects[entity, name] = self._new_project(entity, name)
        return self.projects.get((entity, name))

    def _new_project(self, entity: str, project: str) -> Object:
        number = next(self._numbers)
        return {
            "__typename": "Project",
            "id": _id("Project", number),
            "internalId": _id("ProjectInternalId", number),
            "name": project,
            "entityName": entity,
            "entity": {"id": _id("Entity", entity), "name": entity},
            "createdAt": _now(),
            "readOnly": False,
            "run": lambda name: self.runs.get((entity, project, name)),
            "bucket": lambda name, missingOk=False: self.runs.get((entity, project, name)),
            "artifact": lambda name: (self._membership(entity, project, name) or {}).get(
                "artifact"
            ),
            "artifactCollectionMembership": lambda name: self._membership(entity, project, name),
            "artifactCollection": lambda name: self.collections.get((entity, project, name)),
            # a type is made by its first artifact
            "artifactType": lambda name: None,
        }

    def upsert_run(self, given: Object) -> Object:
        given = {key: value for key, value in given.items() if value is not None}
        by_id = [run for run in self.runs.values() if run["id"] == given.pop("id", None)]
        entity = given.pop("entityName", self.entity)
        project = given.pop("modelName", "uncategorized")
        name = given.pop("name", None) or (
            by_id[0]["name"] if by_id else f"run{next(self._numbers)}"
        )
        run = by_id[0] if by_id else self.runs.get((entity, project, name))
        inserted = run is None
        if run is None:
            run = self.runs[entity, project, name] = self._new_run(entity, project, name)
        run["_config"] |= json.loads(given.pop("config", None) or "{}")
        if "summaryMetrics" in given:
            run["_summary"] = json.loads(given.pop("summaryMetrics"))
        for field in list(given):
            if field in RUN_FIELDS:
                run[RUN_FIELDS[field]] = given.pop(field)
            elif field in IGNORED_RUN_FIELDS:
                del given[field]
        if given:
            raise TypeError(f"UpsertBucketInput: unknown fields {sorted(given)}")
        return {"bucket": run, "inserted": inserted}

    def _new_run(self, entity: str, project: str, name: str) -> Object:
        owner = self.project(entity, project, create=True)
        assert owner is not None
        run: Object = {
            "__typename": "Run",
            "id": _id("Run", f"v1:{name}:{project}:{entity}"),
            "projectId": next(self._numbers),
            "name": name,
            "displayName": name,
            "description": "",
            "notes": "",
            "sweepName": None,
            "tags": [],
            "state": "running",
            "group": None,
            "jobType": None,
            "commit": None,
            "readOnly": False,
            "createdAt": _now(),
            "heartbeatAt": _now(),
            "systemMetrics": "{}",
            "user": {"name": "tester", "username": "tester"},
            "project": owner,
            "stopped": False,
            "_config": {},
            "_summary": {},
            "_history": [],
            "_events": [],
            "_log": {},
            "_files": {},
            "_inputs": [],
            "_outputs": [],
        }
        run |= {
            "config": lambda: json.dumps(run["_config"]),
            "summaryMetrics": lambda: json.dumps(run["_summary"]),
            "wandbConfig": lambda keys=None: json.dumps({"t": {}}),
            "historyLineCount": lambda: len(run["_history"]),
            "eventsLineCount": lambda: len(run["_events"]),
            "logLineCount": lambda: len(run["_log"]),
            "historyTail": lambda: json.dumps([json.dumps(row) for row in run["_history"][-1:]]),
            "eventsTail": lambda: json.dumps([json.dumps(row) for row in run["_events"][-1:]]),
            "historyKeys": lambda: {
                "sets": [],
                "keys": {key: {} for row in run["_history"] for key in row},
                "lastStep": max((row.get("_step", -1) for row in run["_history"]), default=-1),
            },
            "history": lambda minStep=0, maxStep=10**9, samples=500: [
                json.dumps(row)
                for row in run["_history"]
                if minStep <= row.get("_step", 0) < maxStep
            ][:samples],
            "parquetHistory": lambda liveKeys=(): {
                "parquetUrls": [],
                "liveData": list(run["_history"]),
            },
            "files": lambda names=None, after=None, first=None, upload=False, pattern=None: (
                _connection(
                    [
                        self._file(f"/files/{entity}/{project}/{name}/{_quoted(key)}", key, content)
                        for key, content in sorted(run["_files"].items())
                        if not names or key in names
                    ],
                    after,
                    first,
                )
            ),
            "fileCount": lambda: len(run["_files"]),
            "outputArtifacts": lambda after=None, first=None: _connection(
                [one for one in run["_outputs"] if one["state"] == "COMMITTED"], after, first
            ),
            "inputArtifacts": lambda after=None, first=None: _connection(
                run["_inputs"], after, first
            ),
        }
        return run

    def file_stream(self, key: tuple[str, str, str], body: Object) -> None:
        """Rows of a run; offsets make those that are sent again harmless."""
        run = self.runs[key]
        run["heartbeatAt"] = _now()
        for name, chunk in (body.get("files") or {}).items():
            lines, offset = chunk["content"], chunk.get("offset", 0)
            match name:
                case "wandb-summary.json":
                    run["_summary"] = json.loads(lines[-1])
                case "output.log":
                    run["_log"] |= {offset + i: line for i, line in enumerate(lines)}
                case "wandb-history.jsonl" | "wandb-events.jsonl":
                    kept = run["_history" if "history" in name else "_events"]
                    for i, line in enumerate(lines):
                        if offset + i == len(kept):
                            kept.append(json.loads(line))
                case other:
                    raise TypeError(f"file_stream: unknown file {other}")
        if body.get("complete"):
            run["state"] = "finished" if body.get("exitcode") == 0 else "failed"

    def run_files(self, input: Object) -> Object:
        place = f"{input['entityName']}/{input['projectName']}/{input['runName']}"
        return {
            "runID": input["runName"],
            "uploadHeaders": [],
            "files": [
                self._file(f"/files/{place}/{_quoted(name)}", name, b"") for name in input["files"]
            ],
        }

    def _file(self, path: str, name: str, content: bytes) -> Object:
        digest = base64.b64encode(hashlib.md5(content).digest()).decode()
        return {
            "__typename": "File",
            "id": _id("File", path),
            "name": name,
            "displayName": name,
            "url": lambda upload=False: self.base_url + path,
            "directUrl": self.base_url + path,
            "uploadUrl": self.base_url + path,
            "uploadHeaders": [],
            "sizeBytes": len(content),
            "storagePath": path.lstrip("/"),
            "mimetype": "application/octet-stream",
            "updatedAt": _now(),
            "md5": digest,
            "digest": digest,
            "uploadMultipartUrls": None,
        }

    # --- artifacts

    def _collection(
        self, entity: str, project: str, name: str, kind: str, typename: str = "ArtifactSequence"
    ) -> Object:
        key = (entity, project, name)
        if key in self.collections:
            return self.collections[key]
        collection: Object = {
            "__typename": typename,
            "id": _id(typename, next(self._numbers)),
            "name": name,
            "description": None,
            "createdAt": _now(),
            "updatedAt": _now(),
            "project": self.project(entity, project, create=True),
            "defaultArtifactType": {"name": kind},
            "tags": _connection([]),
            "state": "READY",
            "digestAlgorithm": "MANIFEST_MD5",
            "_type": kind,
            "_versions": [],
            "_aliases": {},
        }
        collection |= {
            "artifacts": lambda after=None, first=None, order=None, filters=None: _connection(
                [one for one in collection["_versions"][::-1] if one["state"] == "COMMITTED"],
                after,
                first,
            ),
            "artifactMembership": lambda aliasName: self._membership(
                entity, project, f"{name}:{aliasName}"
            ),
            "latestArtifact": lambda: collection["_aliases"].get("latest"),
            "aliases": lambda after=None, first=None: _connection(
                [self._alias(collection, alias) for alias in collection["_aliases"]], after, first
            ),
        }
        self.collections[key] = collection
        return collection

    def _alias(self, collection: Object, alias: str) -> Object:
        return {
            "__typename": "ArtifactAlias",
            "id": _id("ArtifactAlias", collection["name"] + alias),
            "alias": alias,
            "artifactCollection": collection,
        }

    def _membership(self, entity: str, project: str, full_name: str) -> Object | None:
        name, _, reference = full_name.rpartition("/")[2].partition(":")
        collection = self.collections.get((entity, project, name))
        if collection is None:
            return None
        versions = collection["_versions"]
        reference = reference or "latest"
        artifact = collection["_aliases"].get(reference) or next(
            (one for i, one in enumerate(versions) if f"v{i}" == reference), None
        )
        if artifact is None or artifact["state"] != "COMMITTED":
            return None
        return {
            "__typename": "ArtifactCollectionMembership",
            "id": _id("Membership", f"{collection['id']}{artifact['id']}"),
            "createdAt": _now(),
            "versionIndex": versions.index(artifact),
            "artifactCollection": collection,
            "artifact": artifact,
            "files": lambda names=None, after=None, first=None: _connection(
                self._artifact_files(artifact, names), after, first
            ),
            "aliases": [
                self._alias(collection, alias)
                for alias, one in collection["_aliases"].items()
                if one is artifact
            ],
        }

    def _entries(self, artifact: Object) -> dict[str, Object]:
        place = artifact["_manifest"]["file"]["storagePath"]
        return json.loads(self.blobs[place])["contents"]

    def _artifact_files(self, artifact: Object, names: Iterable[str] | None = None) -> list[Object]:
        wanted = set(names or ())
        return [
            {
                **self._file(
                    f"/storage/{entry['birthArtifactID']}/{_quoted(path)}",
                    path,
                    self.blobs[f"storage/{entry['birthArtifactID']}/{path}"],
                ),
                "digest": entry["digest"],
            }
            for path, entry in self._entries(artifact).items()
            if not wanted or path in wanted
        ]

    def create_artifact(self, input: Object) -> Object:
        entity, project = input["entityName"], input["projectName"]
        (name,) = input.get("artifactCollectionNames") or [input["artifactCollectionName"]]
        collection = self._collection(entity, project, name, input["artifactTypeName"])
        same = [
            one
            for one in collection["_versions"]
            if input.get("enableDigestDeduplication")
            and (one["digest"], one["state"]) == (input["digest"], "COMMITTED")
        ]
        run = self.runs.get((entity, project, input.get("runName") or ""))
        artifact = same[0] if same else self._new_artifact(collection, run, input)
        self._id_of_client_id[input["clientID"]] = artifact["id"]
        self._id_of_client_id[input["sequenceClientID"]] = collection["id"]
        artifact["_wanted_aliases"] = [one["alias"] for one in input.get("aliases") or ()]
        if same:
            self._name(artifact)
        if run is not None and artifact not in run["_outputs"]:
            run["_outputs"].append(artifact)
        return {"artifact": artifact}

    def _new_artifact(self, collection: Object, run: Object | None, input: Object) -> Object:
        number = next(self._numbers)
        artifact: Object = {
            "__typename": "Artifact",
            "id": _id("Artifact", number),
            "digest": input["digest"],
            "digestAlgorithm": input.get("digestAlgorithm") or "MANIFEST_MD5",
            "state": "PENDING",
            "description": input.get("description"),
            "metadata": input.get("metadata") or "{}",
            "versionIndex": len(collection["_versions"]),
            "artifactSequence": collection,
            "artifactType": {"name": input["artifactTypeName"]},
            "ttlDurationSeconds": -1,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": input.get("historyStep"),
            "size": 0,
            "fileCount": 0,
            "commitHash": hashlib.md5(str(number).encode()).hexdigest(),
            "createdAt": _now(),
            "updatedAt": _now(),
            "createdBy": run or {"__typename": "User"},
            "_users": [],
            "_manifest": None,
        }
        artifact |= {
            "currentManifest": lambda: artifact["_manifest"],
            "usedBy": lambda after=None, first=None: _connection(artifact["_users"], after, first),
            "aliases": lambda: [
                self._alias(one, alias)
                for one in self.collections.values()
                for alias, holder in one["_aliases"].items()
                if holder is artifact
            ],
            "artifactMemberships": lambda after=None, first=None: _connection(
                [
                    self._membership(
                        one["project"]["entityName"],
                        one["project"]["name"],
                        f"{one['name']}:v{one['_versions'].index(artifact)}",
                    )
                    for one in self.collections.values()
                    if artifact in one["_versions"]
                ],
                after,
                first,
            ),
            "files": lambda names=None, after=None, first=None: _connection(
                self._artifact_files(artifact, names), after, first
            ),
        }
        collection["_versions"].append(artifact)
        self.artifacts[artifact["id"]] = artifact
        return artifact

    def commit(self, artifact_id: str) -> Object:
        artifact = self.artifacts[artifact_id]
        artifact["state"] = "COMMITTED"
        files = self._artifact_files(artifact)
        artifact["fileCount"] = len(files)
        artifact["size"] = sum(file["sizeBytes"] for file in files)
        self._name(artifact)
        return {"artifact": artifact}

    def _name(self, artifact: Object) -> None:
        for alias in {"latest", *artifact["_wanted_aliases"]}:
            artifact["artifactSequence"]["_aliases"][alias] = artifact

    def manifest(self, input: Object) -> Object:
        artifact_id, name = input["artifactID"], input["name"]
        manifest = {
            "__typename": "ArtifactManifest",
            "id": _id("ArtifactManifest", next(self._numbers)),
            "file": self._file(f"/storage/manifests/{artifact_id}/{name}", name, b""),
            "digest": input["digest"],
        }
        self.artifacts[artifact_id]["_manifest"] = manifest
        return {"artifactManifest": manifest}

    def artifact_files(self, input: Object) -> Object:
        nodes = []
        for given in input["artifactFiles"]:
            path = f"storage/{given['artifactID']}/{given['name']}"
            nodes.append(
                {
                    **self._file("/" + _quoted(path), given["name"], b""),
                    "storagePath": path,
                    "artifact": self.artifacts[given["artifactID"]],
                }
            )
        return {"files": _connection(nodes)}

    def use_artifact(self, input: Object) -> Object:
        run = self.runs[input["entityName"], input["projectName"], input["runName"]]
        artifact = self.artifacts[input["artifactID"]]
        if artifact not in run["_inputs"]:
            run["_inputs"].append(artifact)
            artifact["_users"].append(run)
        return {"artifact": artifact}

    def add_aliases(self, input: Object) -> Object:
        for given in input["aliases"]:
            key = (given["entityName"], given["projectName"], given["artifactCollectionName"])
            self.collections[key]["_aliases"][given["alias"]] = self.artifacts[input["artifactID"]]
        return {"success": True}

    # --- the root of every document

    def root(self) -> Object:
        return {
            "__typename": "Query",
            "serverInfo": {
                "features": [{"name": name, "isEnabled": True} for name in FEATURES],
                "cliVersionInfo": None,
                "latestLocalVersionInfo": None,
            },
            "viewer": {
                "__typename": "User",
                "id": _id("User", 1),
                "entity": self.entity,
                "username": "tester",
                "name": "tester",
                "email": "tester@example.invalid",
                "flags": "{}",
                "admin": False,
                "deletedAt": None,
                "apiKeys": _connection([]),
                "teams": _connection([]),
            },
            "entity": _entity,
            "organization": lambda name: _organisation(name),
            "project": lambda name=None, entityName=None: self.project(entityName, name or ""),
            "model": lambda name=None, entityName=None: self.project(entityName, name or ""),
            "artifact": lambda id: self.artifacts.get(id),
            "clientIDMapping": lambda clientID: {"serverID": self._id_of_client_id.get(clientID)},
            "upsertBucket": lambda input: self.upsert_run(input),
            "createRunFiles": self.run_files,
            "markRunFilesUploaded": lambda input: {"success": True},
            "createArtifact": self.create_artifact,
            "createArtifactManifest": self.manifest,
            "createArtifactFiles": self.artifact_files,
            "commitArtifact": lambda input: self.commit(input["artifactID"]),
            "useArtifact": self.use_artifact,
            "addAliases": self.add_aliases,
        }


def _entity(name: str | None = None) -> Object:
    return {
        "id": _id("Entity", name),
        "name": name,
        "isTeam": True,
        "organization": _organisation(f"{name}-org"),
        "xxhashDigestsEnabled": False,
        "user": None,
    }


def _organisation(name: str) -> Object:
    return {
        "id": _id("Organization", name),
        "name": name,
        "orgEntity": {"id": _id("Entity", name), "name": name, "entityType": "ORG"},
        "coreWeaveOrganizationId": None,
        "featureFlags": lambda rampIDType=None: [],
    }


def _connection(items: Sequence[Any], after: str | None = None, first: int | None = None) -> Object:
    """A page of a list; cursors are offsets."""
    low = int(after) if after else 0
    high = min(len(items), low + (first or len(items)))
    edges = []
    for i in range(low, high):
        edge = {"cursor": str(i + 1), "node": items[i]}
        if items[i].get("__typename") == "Artifact":
            edge["version"] = f"v{items[i]['versionIndex']}"
        edges.append(edge)
    return {
        "totalCount": len(items),
        "pageInfo": {
            "__typename": "PageInfo",
            "endCursor": str(high),
            "hasNextPage": high < len(items),
        },
        "edges": edges,
    }


def _id(kind: str, number: object) -> str:
    return base64.b64encode(f"{kind}:{number}".encode()).decode()


def _quoted(path: str) -> str:
    return urllib.parse.quote(path)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
