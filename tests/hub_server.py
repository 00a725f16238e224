"""A hub on 127.0.0.1 for tests: repositories in memory, and the part of the API that huggingface_hub calls."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlparse

NONE: Mapping[str, str] = {}


@dataclass
class Repository:
    """Files by path for each commit; branches and tags name commits."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], branch: str = "main", message: str = "") -> str:
        before = self.commits.get(self.branches.get(branch, self.branches.get("main", "")), {})
        name = hashlib.sha1(repr((branch, len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[name] = {**before, **files}
        self.branches[branch] = name
        self.messages.append(message)
        return name


class Hub(http.server.ThreadingHTTPServer):
    """The server. `fails` is a status that everything gets; `told_sizes` are lies about files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.tokens: list[str | None] = []
        self.fails = 0
        self.told_sizes: dict[str, int] = {}
        self.large_suffix = ".safetensors"
        self.endless = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, files: dict[str, bytes], **options: Any) -> Repository:
        found = self.repositories.setdefault(name, Repository(**options))
        found.commit(files)
        return found


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    # -- asking --------------------------------------------------------------------------------------------------------

    def do_GET(self) -> None:
        if self._is_down():
            return
        path = unquote(urlparse(self.path).path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", urlparse(self.path).path):
            self._file(*map(unquote, found.groups()))
        else:
            self._answer(404, {"error": "no such address"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def _is_down(self) -> bool:
        self.server.requests.append(f"{self.command} {self.path}")
        self.server.tokens.append(self.headers.get("Authorization"))
        if self.server.fails:
            self._answer(self.server.fails, {"error": "the hub is down"})
        return bool(self.server.fails)

    def _repository(self, name: str) -> Repository | None:
        found = self.server.repositories.get(name)
        if found is None or (found.private and not self.headers.get("Authorization")):
            self._answer(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        if found.gated:
            self._answer(403, {"error": "ask its owner"}, {"X-Error-Code": "GatedRepo"})
            return None
        return found

    def _commit(self, repository: Repository, revision: str) -> str | None:
        found = repository.branches.get(revision, revision)
        if found not in repository.commits:
            self._answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return found

    def _info(self, name: str, revision: str) -> None:
        repository = self._repository(name)
        commit = None if repository is None else self._commit(repository, revision)
        if repository is None or commit is None:
            return
        files = repository.commits[commit]
        siblings = [
            {"rfilename": path, "size": self.server.told_sizes.get(path, len(content)), "blobId": _git_hash(content)}
            for path, content in files.items()
        ]
        self._answer(200, {"id": name, "sha": commit, "private": repository.private, "siblings": siblings, "tags": []})

    def _file(self, name: str, revision: str, path: str) -> None:
        repository = self._repository(name)
        commit = None if repository is None else self._commit(repository, revision)
        if repository is None or commit is None:
            return
        content = repository.commits[commit].get(path)
        headers = {"X-Repo-Commit": commit}
        if content is None:
            self._answer(404, {"error": "no such file"}, {**headers, "X-Error-Code": "EntryNotFound"})
            return
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        if self.server.endless and path.endswith(".safetensors"):
            self._send_for_ever(headers)
            return
        self._send(200, content, "application/octet-stream", headers)

    def _send_for_ever(self, headers: dict[str, str]) -> None:
        self.send_response(200)
        for key, value in {**headers, "Transfer-Encoding": "chunked"}.items():
            self.send_header(key, value)
        self.end_headers()
        try:
            while self.command == "GET":
                self.wfile.write(b"100000\r\n" + bytes(0x100000) + b"\r\n")
        except OSError:
            self.close_connection = True

    # -- giving --------------------------------------------------------------------------------------------------------

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._is_down():
            return
        path = unquote(urlparse(self.path).path)
        if path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif not self.headers.get("Authorization"):
            self._answer(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            self._branch(found[1], found[2])
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            self._modes(json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            self._take(found[1], found[2], body)
        else:
            self._answer(404, {"error": "no such address"})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._is_down():
            self.server.objects[self.path.rpartition("/")[2]] = content
            self._answer(200, {})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        status = 409 if name in self.server.repositories else 200
        if status == 200:
            self.server.add(name, {}, private=private)
        self._answer(status, {"url": f"{self.server.url}/{name}", "name": name, "id": "1"})

    def _branch(self, name: str, branch: str) -> None:
        repository = self.server.repositories[name]
        status = 409 if branch in repository.branches else 200
        repository.branches.setdefault(branch, repository.branches["main"])
        self._answer(status, {})

    def _modes(self, asked: dict[str, Any]) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(self.server.large_suffix) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in asked["files"]
        ]
        self._answer(200, {"files": files, "commitOid": "0" * 40})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**each, "authenticated": True, "actions": {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}}
            for each in asked["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _take(self, name: str, revision: str, body: bytes) -> None:
        files, message = {}, ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        commit = self.server.repositories[name].commit(files, revision, message)
        url = f"{self.server.url}/{name}/commit/{commit}"
        self._answer(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    # -- answering -----------------------------------------------------------------------------------------------------

    def _answer(self, status: int, value: Any, headers: Mapping[str, str] = NONE) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", headers)

    def _send(self, status: int, content: bytes, kind: str, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None: ...


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
