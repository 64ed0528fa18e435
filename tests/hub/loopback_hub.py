"""A Hub on loopback for the real `huggingface_hub` client: repositories, commits, branches, LFS, tokens, and faults.

It speaks the requests that uploading and downloading make, keeps everything in memory, and listens on a free port of
127.0.0.1. Faults are switched on and off through `POST /_faults`, so that the process under test can do it between two
calls: `{"cut_download": {"suffix": ..., "times": n}}` ends downloads of a file half way, `{"drop": {"path": regex,
"times": n}}` reads requests, does nothing and closes the connection.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_loopback"
USER = "tester"
LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".npz", ".mp4")


@dataclass(frozen=True)
class StoredFile:
    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.git_oid


@dataclass
class Repository:
    """Commits are whole trees: a new one is complete before a branch points at it."""

    name: str
    private: bool
    commits: dict[str, dict[str, StoredFile]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, StoredFile], message: str, branch: str) -> str:
        described = json.dumps([message, len(self.commits), sorted((k, v.etag) for k, v in files.items())])
        sha = hashlib.sha1(described.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.messages.append(message)
        self.refs[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


class HubError(Exception):
    """Becomes an HTTP error with the headers that the client reads."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code


class LoopbackHub:
    """The server and its state. `url` is what `HF_ENDPOINT` should be."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: dict[str, Any] = {}
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def repository(self, kind: str, name: str, authorized: bool) -> Repository:
        found = self.repositories.get((kind, name))
        if found is None or (found.private and not authorized):
            raise HubError(404 if authorized else 401, "RepoNotFound", "Repository not found")
        return found

    def files(self, name: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """What a reader of a repository sees."""
        repository = self.repositories[kind, name]
        sha = repository.resolve(revision)
        return {path: stored.content for path, stored in repository.commits[sha].items()} if sha else {}

    def put(self, name: str, files: Mapping[str, bytes], kind: str = "models") -> str:
        """Commits files behind the client's back; those not named stay."""
        with self.lock:
            repository = self.repositories.setdefault((kind, name), Repository(name, private=False))
            tree = dict(repository.commits.get(repository.refs.get("main", ""), {}))
            tree.update({path: StoredFile(content, path.endswith(LFS_SUFFIXES)) for path, content in files.items()})
            return repository.commit(tree, "put", "main")

    def environment(self, home: Any) -> dict[str, str]:
        """Variables for a process whose Hub is this one, with a cache of its own in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }


@contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    hub = LoopbackHub()
    try:
        yield hub
    finally:
        hub.close()


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    ROUTES = (
        ("POST", r"/_faults", "faults"),
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/(?P<kind>\w+)/(?P<name>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/(?P<kind>\w+)/(?P<name>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/api/(?P<kind>\w+)/(?P<name>[^/]+/[^/]+)/branch/(?P<revision>[^/]+)", "branch"),
        ("POST", r"/api/(?P<kind>\w+)/(?P<name>[^/]+/[^/]+)/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("GET", r"/api/(?P<kind>\w+)/(?P<name>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", "tree"),
        ("GET", r"/api/(?P<kind>\w+)/(?P<name>[^/]+/[^/]+)/revision/(?P<revision>[^/]+)", "info"),
        ("GET", r"/api/(?P<kind>\w+)/(?P<name>[^/]+/[^/]+)", "info"),
        ("POST", r"/((?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/_lfs/(?P<oid>\w+)", "lfs_put"),
        ("POST", r"/_lfs/(?P<oid>\w+)/verify", "lfs_verify"),
        ("GET", r"/_lfs/(?P<oid>\w+)", "lfs_get"),
        ("GET", r"/((?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def do_GET(self) -> None:
        self._dispatch("GET")

    def do_HEAD(self) -> None:
        self._dispatch("GET")

    def do_POST(self) -> None:
        self._dispatch("POST")

    def do_PUT(self) -> None:
        self._dispatch("PUT")

    def log_message(self, format: str, *args: Any) -> None:
        pass

    # Plumbing

    def _dispatch(self, method: str) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        self.body = self._read_body()
        self.hub.requests.append(f"{self.command} {url.path} {self.headers.get('Range', '')}".strip())
        if self._dropped(url.path):
            self.close_connection = True
            return
        for wanted, pattern, action in self.ROUTES:
            match = re.fullmatch(pattern, url.path)
            if match and wanted == method:
                groups = match.groupdict()
                if "name" in groups:
                    groups["kind"] = groups["kind"] or "models"
                arguments = {key: unquote(value) for key, value in groups.items() if value is not None}
                try:
                    with self.hub.lock:
                        self._authorize()
                        reply = getattr(self, action)(**arguments)
                    reply()
                except HubError as error:
                    headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
                    self._json({"error": str(error)}, error.status, headers)()
                return
        self._json({"error": f"no route for {method} {url.path}"}, 404)()

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _dropped(self, path: str) -> bool:
        with self.hub.lock:
            drop = self.hub.faults.get("drop")
            if drop is None or drop["times"] < 1 or not re.search(drop["path"], path):
                return False
            drop["times"] -= 1
            return True

    def _authorize(self) -> None:
        given = self.headers.get("Authorization")
        if given is not None and given != f"Bearer {TOKEN}":
            raise HubError(401, "", "Invalid credentials in Authorization header")
        self.authorized = given is not None

    def _writer(self) -> None:
        if not self.authorized:
            raise HubError(401, "", "Invalid username or password.")

    def _json(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Any:
        content = json.dumps(value).encode()
        return lambda: self._send(content, status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, content: bytes, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        with self.hub.lock:
            cut = self.hub.faults.get("cut_download")
            if cut is not None and cut["times"] and headers.get("X-File", "").endswith(cut["suffix"]):
                cut["times"] -= 1
                content = content[: len(content) // 2]
                self.close_connection = True
        self.wfile.write(content)

    def _file(self, path: str, content: bytes, headers: Mapping[str, str]) -> Any:
        """A whole file, or the range of it that was asked for."""
        headers = {"Accept-Ranges": "bytes", "X-File": path, **headers}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return lambda: self._send(content, 200, headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return lambda: self._send(content[first : last + 1], 206, headers)

    def _tree(self, kind: str, name: str, revision: str) -> tuple[Repository, str, dict[str, StoredFile]]:
        repository = self.hub.repository(kind, name, self.authorized)
        sha = repository.resolve(revision)
        if sha is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, sha, repository.commits[sha]

    # Actions

    def faults(self) -> Any:
        self.hub.faults = json.loads(self.body)
        return self._json({})

    def whoami(self) -> Any:
        self._writer()
        return self._json({"name": USER, "type": "user", "orgs": []})

    def create(self) -> Any:
        self._writer()
        asked = json.loads(self.body)
        kind, owner = f"{asked.get('type') or 'model'}s", asked.get("organization") or USER
        name = f"{owner}/{asked['name']}"
        if owner != USER:
            raise HubError(403, "", f"You don't have the rights to create a repository under the namespace {owner!r}")
        url = f"{self.hub.url}/{'datasets/' if kind == 'datasets' else ''}{name}"
        if (kind, name) in self.hub.repositories:
            return self._json({"error": "You already created this repo", "url": url}, 409)
        repository = Repository(name, private=asked.get("visibility") == "private")
        repository.commit({}, "initial commit", "main")
        self.hub.repositories[kind, name] = repository
        return self._json({"url": url, "name": name})

    def validate_yaml(self) -> Any:
        return self._json({"errors": [], "warnings": []})

    def preupload(self, kind: str, name: str, revision: str) -> Any:
        self._writer()
        tree = self._tree(kind, name, revision)[2]
        files = []
        for asked in json.loads(self.body)["files"]:
            mode = "lfs" if asked["path"].endswith(LFS_SUFFIXES) else "regular"
            oid = tree[asked["path"]].etag if asked["path"] in tree else None
            files.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return self._json({"files": files})

    def commit(self, kind: str, name: str, revision: str) -> Any:
        self._writer()
        repository, _, files = self._tree(kind, name, revision)
        if revision not in repository.refs:
            raise HubError(404, "RevisionNotFound", f"no branch {revision}")
        files, message = dict(files), ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                message = value["summary"]
            elif operation["key"] == "file":
                files[value["path"]] = StoredFile(base64.b64decode(value["content"]), is_lfs=False)
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise HubError(400, "", f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = StoredFile(self.hub.lfs[value["oid"]], is_lfs=True)
            elif operation["key"] == "deletedFile":
                files.pop(value["path"], None)
            else:
                raise HubError(400, "", f"unknown operation {operation['key']}")
        sha = repository.commit(files, message, revision)
        url = f"{self.hub.url}/{'datasets/' if kind == 'datasets' else ''}{name}/commit/{sha}"
        return self._json({"success": True, "commitUrl": url, "commitOid": sha})

    def branch(self, kind: str, name: str, revision: str) -> Any:
        self._writer()
        repository, sha, _ = self._tree(kind, name, json.loads(self.body or b"{}").get("startingPoint") or "main")
        if revision in repository.refs:
            return self._json({"error": "Reference already exists"}, 409)
        repository.refs[revision] = sha
        return self._json({})

    def info(self, kind: str, name: str, revision: str = "main") -> Any:
        repository, sha, files = self._tree(kind, name, revision)
        siblings = [{"rfilename": path} for path in sorted(files)]
        about = {"id": name, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []}
        return self._json({**about, "downloads": 0, "likes": 0, "gated": False, "disabled": False})

    def tree(self, kind: str, name: str, revision: str, path: str = "") -> Any:
        _, sha, files = self._tree(kind, name, revision)
        inside = {name: stored for name, stored in files.items() if not path or name.startswith(f"{path}/")}
        if path and not inside:
            raise HubError(404, "EntryNotFound", f"{path} does not exist on {revision}")
        recursive = self.query.get("recursive", "").lower() == "true"
        entries: dict[str, dict[str, Any]] = {}
        for name, stored in sorted(inside.items()):
            rest = name[len(path) + 1 :] if path else name
            parts = rest.split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                folder = "/".join([*([path] if path else []), *parts[:depth]])
                entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": sha}
            if recursive or len(parts) == 1:
                entries[name] = _entry(name, stored)
        return self._json(list(entries.values()))

    def paths_info(self, kind: str, name: str, revision: str) -> Any:
        _, sha, files = self._tree(kind, name, revision)
        if "json" in self.headers.get("Content-Type", ""):
            wanted = json.loads(self.body)["paths"]
        else:
            wanted = parse_qs(self.body.decode()).get("paths", [])
        entries = [_entry(path, files[path]) for path in wanted if path in files]
        for path in wanted:
            if path not in files and any(name.startswith(f"{path.rstrip('/')}/") for name in files):
                entries.append({"type": "directory", "path": path, "size": 0, "oid": sha})
        return self._json(entries)

    def lfs_batch(self, kind: str, name: str) -> Any:
        self._writer()
        self.hub.repository(kind, name, self.authorized)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            href = f"{self.hub.url}/_lfs/{asked['oid']}"
            actions = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(asked if asked["oid"] in self.hub.lfs else {**asked, "actions": actions})
        return self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "", "the content does not have this sha256")
        self.hub.lfs[oid] = self.body
        return self._json({})

    def lfs_verify(self, oid: str) -> Any:
        asked = json.loads(self.body)
        if len(self.hub.lfs.get(oid, b"")) != asked["size"]:
            raise HubError(404, "EntryNotFound", f"object {oid} is not complete")
        return self._json({})

    def lfs_get(self, oid: str) -> Any:
        content = self.hub.lfs.get(oid) or next(
            stored.content
            for repository in self.hub.repositories.values()
            for files in repository.commits.values()
            for stored in files.values()
            if stored.is_lfs and stored.sha256 == oid
        )
        return self._file(self.query["name"], content, {"ETag": f'"{oid}"'})

    def resolve(self, kind: str, name: str, revision: str, path: str) -> Any:
        _, sha, files = self._tree(kind, name, revision)
        if path not in files:
            raise HubError(404, "EntryNotFound", f"{path} does not exist on {revision}")
        stored = files[path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{stored.etag}"'}
        if not stored.is_lfs:
            return self._file(path, stored.content, headers)
        # Large files live on another host: the reply names their place, size and hash.
        headers["X-Linked-Etag"], headers["X-Linked-Size"] = f'"{stored.etag}"', str(len(stored.content))
        headers["Location"] = f"{self.hub.url}/_lfs/{stored.sha256}?name={path}".replace("127.0.0.1", "localhost")
        return lambda: self._send(b"", 302, headers)


def _entry(path: str, stored: StoredFile) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(stored.content), "oid": stored.git_oid}
    if stored.is_lfs:
        entry["lfs"] = {"oid": stored.sha256, "size": len(stored.content), "pointerSize": 134}
    return entry
