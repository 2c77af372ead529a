"""A hub of our own on 127.0.0.1: as much of the Hugging Face Hub's REST protocol as its libraries
use to make, fill, list and read model and dataset repositories.

It is real HTTP, spoken with the real `huggingface_hub`, `datasets`, `diffusers` and `transformers`.
Repositories live in memory; every commit is a revision that stays readable. Every request is
recorded. It is also named as the proxy for every other address, and refuses those: so a test knows
what else a library wanted to reach, and nothing leaves this machine.
"""

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

WRITER, READER, STRANGER = "hf_writerOfMe", "hf_readerOfMe", "hf_writerOfOther"
EPOCH = "2024-01-01T00:00:00.000Z"
LARGE = (".arrow", ".safetensors", ".bin", ".parquet", ".pt")  # kept as LFS files


@dataclass(frozen=True)
class Account:
    """Whose token it is, and whether it may write to what is theirs."""

    user: str
    can_write: bool


ACCOUNTS = {
    WRITER: Account("me", True),
    READER: Account("me", False),
    STRANGER: Account("other", True),
}


@dataclass(frozen=True)
class Request:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    token: str | None


# What becomes of a request instead of its answer: a status, seconds before it, a connection cut in
# the middle of its body, or with it the whole server's end.
Trouble = int | float | Literal["cut", "die"] | None


class RefusalError(Exception):
    """An answer that is an error: status, `X-Error-Code`, message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class Blob:
    """A file's content, with the names git and LFS know it by."""

    content: bytes
    large: bool

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """What the hub compares, and names in the ETag."""
        return self.sha256 if self.large else self.git_oid


@dataclass
class Repository:
    """Revisions of a tree of files, and the large files that were uploaded for it."""

    kind: str  # "models" or "datasets"
    name: str
    private: bool
    gated: bool = False
    revisions: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", {".gitattributes": Blob(b"*.arrow filter=lfs\n", False)}, None)

    def commit(self, branch: str, files: dict[str, Blob], parent: str | None) -> str:
        """Add a revision; its name follows from its content and its parent."""
        tree = json.dumps([parent, *sorted((path, blob.oid) for path, blob in files.items())])
        sha = hashlib.sha1(f"{self.kind}/{self.name} {tree}".encode()).hexdigest()
        self.revisions[sha] = files
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str:
        """The commit of a branch or commit."""
        sha = self.branches.get(revision, revision)
        if sha not in self.revisions:
            raise RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha


class HubServer:
    """The server in a thread of its own, what it keeps, and what it was asked for."""

    def __init__(self) -> None:
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._handler = Handler
        self.connections: set[socket.socket] = set()
        self.lock = threading.Lock()
        self.start(0)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.forget()

    def start(self, port: int | None = None) -> None:
        """Begin to answer, at the same address as before; what was kept is there."""
        port = self._server.server_port if port is None else port
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.running = True

    def forget(self) -> None:
        """Start again: no repositories, no record."""
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[Request] = []
        self.foreign: list[str] = []  # what else was to be reached
        self.broken: int | None = None  # a status that answers everything
        self.trouble: Callable[[str, str], Trouble] = lambda method, path: None
        if not self.running:
            self.start()

    def close(self) -> None:
        """As if it was killed: nobody listens, and every connection is cut."""
        self.running = False
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def environment(self, home: Path) -> dict[str, str]:
        """What makes the libraries of a process use this hub only, and keep all they keep there."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), self.url),
            **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), self.url),
            **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
        }

    def files(self, kind: str, name: str, revision: str = "main") -> dict[str, bytes]:
        """The content of each file of a repository, but for `.gitattributes`."""
        repository = self.repositories[kind, name]
        tree = repository.revisions[repository.resolve(revision)]
        return {path: tree[path].content for path in sorted(tree) if path != ".gitattributes"}

    def asked(self, method: str, pattern: str) -> list[str]:
        """The recorded paths of this method in which the pattern is found."""
        return [r.path for r in self.requests if r.method == method and re.search(pattern, r.path)]


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: requests are recorded instead."""

    def setup(self) -> None:
        super().setup()
        self.server_hub.connections.add(self.connection)

    def finish(self) -> None:
        self.server_hub.connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        hub = self.server_hub
        trouble = hub.trouble(self.command, self.path)
        if trouble in ("cut", "die"):
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            if trouble == "die":
                hub.close()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = self._body()
        if isinstance(trouble, float):
            time.sleep(trouble)
        if self.command == "CONNECT" or not self.path.startswith("/"):
            hub.foreign.append(self.path)
            self.close_connection = True
            self._answer(403, {"error": "nothing but this hub is there"}, {})
            return
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        request = Request(self.command, self.path, dict(self.headers), body, token)
        with hub.lock:
            hub.requests.append(request)
            try:
                status = trouble if isinstance(trouble, int) else hub.broken
                if status is not None:
                    raise RefusalError(status, "", "The hub is full")
                answer, headers = _Protocol(hub, request).answer()
                status = 200
            except RefusalError as refusal:
                status, answer = refusal.status, {"error": refusal.message}
                headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
                if status == 409:
                    answer["url"] = refusal.code
        self._answer(status, answer, headers)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_CONNECT = do_GET  # noqa: N815 (http.server's names)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, answer: Any, headers: dict[str, str]) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted and status == 200 and "ETag" in headers:
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            status, content = 206, content[first : last + 1]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class _Protocol:
    """One request against what the hub keeps."""

    def __init__(self, hub: HubServer, request: Request) -> None:
        self.hub, self.request = hub, request
        if request.token is not None and request.token not in ACCOUNTS:
            raise RefusalError(401, "", "Invalid credentials in Authorization header")
        self.account = ACCOUNTS[request.token] if request.token else None
        url = urlsplit(request.path)
        self.path, self.query = url.path, parse_qs(url.query)

    def answer(self) -> tuple[Any, dict[str, str]]:
        name = r"(?P<name>[\w.-]+/[\w.-]+)"
        api = rf"/api/(?P<kind>models|datasets)/{name}"
        web = rf"/(?P<kind>datasets/)?{name}"
        routes: list[tuple[str, str, Callable[..., Any]]] = [
            ("POST", r"/api/repos/create", self.create),
            ("POST", r"/api/validate-yaml", lambda: {"errors": [], "warnings": []}),
            ("POST", rf"{api}/preupload/(?P<revision>[^/]+)", self.preupload),
            ("POST", rf"{api}/commit/(?P<revision>[^/]+)", self.commit),
            ("POST", rf"{api}/branch/(?P<revision>[^/]+)", self.branch),
            ("POST", rf"{api}/paths-info/(?P<revision>[^/]+)", self.paths_info),
            ("POST", rf"{web}\.git/info/lfs/objects/batch", self.batch),
            ("PUT", rf"/upload/(?P<kind>\w+)/{name}/(?P<oid>\w+)", self.upload),
            ("POST", rf"/verify/(?P<kind>\w+)/{name}/(?P<oid>\w+)", self.verify),
            ("GET", rf"{api}/auth-check/write", self.auth_check),
            ("GET", rf"{api}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?", self.tree),
            ("GET", rf"{api}(?:/revision/(?P<revision>[^/]+))?", self.info),
            ("GET HEAD", rf"{web}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", self.resolve),
        ]
        for methods, pattern, respond in routes:
            found = re.fullmatch(pattern, self.path)
            if found and self.request.method in methods.split():
                values = {key: unquote(value or "") for key, value in found.groupdict().items()}
                if "kind" in values:
                    values["kind"] = values["kind"].strip("/") or "models"
                answer = respond(**values)
                return answer if isinstance(answer, tuple) else (answer, {})
        raise RefusalError(404, "", f"there is no {self.request.method} {self.path} here")

    def create(self) -> Any:
        asked = json.loads(self.request.body)
        name = f"{asked['organization']}/{asked['name']}"
        kind = f"{asked.get('type') or 'model'}s"
        private = asked.get("visibility") == "private" or asked.get("private", False)
        self._check_writer(asked["organization"])
        url = f"{self.hub.url}/{'datasets/' if kind == 'datasets' else ''}{name}"
        if (kind, name) in self.hub.repositories:
            raise RefusalError(409, url, "You already created this repo")
        self.hub.repositories[kind, name] = Repository(kind, name, private)
        return {"url": url, "name": name}

    def auth_check(self, kind: str, name: str) -> Any:
        self._writable(kind, name)
        return {}

    def info(self, kind: str, name: str, revision: str) -> Any:
        repository = self._repository(kind, name)
        sha = repository.resolve(revision or "main")
        files = [{"rfilename": path} for path in sorted(repository.revisions[sha])]
        return {
            **{
                "_id": "0",
                "id": name,
                "modelId": name,
                "sha": sha,
                "author": name.partition("/")[0],
            },
            **{"private": repository.private, "gated": False, "disabled": False, "tags": []},
            **{"lastModified": EPOCH, "createdAt": EPOCH, "downloads": 0, "likes": 0},
            "siblings": files,
        }

    def tree(self, kind: str, name: str, revision: str, folder: str) -> Any:
        files = self._files(kind, name, revision)
        prefix = f"{folder}/" if folder else ""
        inside = [path for path in files if path.startswith(prefix)]
        if not inside:
            raise RefusalError(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        found = [*_folders(inside), *inside]
        if self.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            found = [path for path in found if "/" not in path.removeprefix(prefix)]
        return [_entry(path, files) for path in found if path.startswith(prefix)]

    def paths_info(self, kind: str, name: str, revision: str) -> Any:
        files = self._files(kind, name, revision)
        known = {*files, *_folders(list(files))}
        asked = parse_qs(self.request.body.decode())["paths"]
        return [_entry(path, files) for path in asked if path in known]

    def resolve(self, kind: str, name: str, revision: str, file: str) -> Any:
        sha = self._repository(kind, name).resolve(revision)
        files = self._files(kind, name, revision)
        commit = {"X-Repo-Commit": sha}
        if file not in files:
            raise RefusalError(404, "EntryNotFound", f"{file} does not exist on {revision}")
        return files[file].content, {"ETag": f'"{files[file].oid}"', **commit}

    def preupload(self, kind: str, name: str, revision: str) -> Any:
        repository = self._writable(kind, name)
        files = repository.revisions[repository.resolve(revision)]
        answers = [
            {
                "path": asked["path"],
                "uploadMode": "lfs" if asked["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": files[asked["path"]].oid if asked["path"] in files else None,
            }
            for asked in json.loads(self.request.body)["files"]
        ]
        return {"files": answers}

    def batch(self, kind: str, name: str) -> Any:
        repository = self._writable(kind, name)
        objects = []
        for asked in json.loads(self.request.body)["objects"]:
            place = f"{kind}/{name}/{asked['oid']}"
            actions = {
                "upload": {"href": f"{self.hub.url}/upload/{place}", "header": {}},
                "verify": {"href": f"{self.hub.url}/verify/{place}", "header": {}},
            }
            new = asked["oid"] not in repository.uploads
            objects.append({**asked, "actions": actions} if new else asked)
        return {"transfer": "basic", "objects": objects}

    def upload(self, kind: str, name: str, oid: str) -> Any:
        """As a signed address: whoever knows it may."""
        self.hub.repositories[kind, name].uploads[oid] = self.request.body
        return b""

    def verify(self, kind: str, name: str, oid: str) -> Any:
        content = self._writable(kind, name).uploads.get(oid)
        if content is None or hashlib.sha256(content).hexdigest() != oid:
            raise RefusalError(422, "", f"{oid} is not what was uploaded")
        return {}

    def branch(self, kind: str, name: str, revision: str) -> Any:
        repository = self._writable(kind, name)
        if revision in repository.branches:
            raise RefusalError(409, self.hub.url, "Reference already exists")
        repository.branches[revision] = repository.branches["main"]
        return {}

    def commit(self, kind: str, name: str, revision: str) -> Any:
        repository = self._writable(kind, name)
        if revision not in repository.branches:
            raise RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        parent = repository.branches[revision]
        files = dict(repository.revisions[parent])
        for line in self.request.body.splitlines():
            item = json.loads(line)
            _apply(item["key"], item["value"], files, repository.uploads)
        sha = repository.commit(revision, files, parent)
        return {"commitUrl": f"{self.hub.url}/{kind}/{name}/commit/{sha}", "commitOid": sha}

    def _files(self, kind: str, name: str, revision: str) -> dict[str, Blob]:
        repository = self._repository(kind, name)
        return repository.revisions[repository.resolve(revision)]

    def _repository(self, kind: str, name: str) -> Repository:
        repository = self.hub.repositories.get((kind, name))
        mine = self.account is not None and self.account.user == name.partition("/")[0]
        if repository is None or (repository.private and not mine):
            status = 401 if self.account is None else 404
            raise RefusalError(status, "RepoNotFound", "Repository not found")
        if repository.gated and not mine:
            raise RefusalError(403, "GatedRepo", "Access to it is restricted")
        return repository

    def _writable(self, kind: str, name: str) -> Repository:
        repository = self._repository(kind, name)
        self._check_writer(name.partition("/")[0])
        return repository

    def _check_writer(self, owner: str) -> None:
        if self.account is None:
            raise RefusalError(401, "", "Invalid username or password.")
        if self.account.user != owner or not self.account.can_write:
            raise RefusalError(403, "", f"You have no right to write under {owner}")


def _apply(key: str, value: dict[str, Any], files: dict[str, Blob], uploads: dict) -> None:
    """One line of a commit."""
    path = value.get("path", "")
    if key == "file":
        files[path] = Blob(base64.b64decode(value["content"]), False)
    elif key == "lfsFile":
        if value["oid"] not in uploads:
            raise RefusalError(400, "", f"{path} was not uploaded")
        files[path] = Blob(uploads[value["oid"]], True)
    elif key == "deletedFile":
        del files[path]


def _folders(paths: list[str]) -> list[str]:
    return sorted({str(up) for path in paths for up in Path(path).parents if str(up) != "."})


def _entry(path: str, files: dict[str, Blob]) -> dict[str, Any]:
    """A file or folder as the hub lists it."""
    last = {"lastCommit": {"id": "0" * 40, "title": "commit", "date": EPOCH}}
    if path not in files:
        return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0, **last}
    blob = files[path]
    entry = {"type": "file", "path": path, "oid": blob.git_oid, "size": len(blob.content), **last}
    if blob.large:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 130}
    return entry
