"""A server on this machine that speaks the Hub's calls of creating a repository, uploading and downloading.

Files of 1,000 bytes and more go the way of large files (git LFS), as on the Hub those of 10 MB and all binary ones do.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

LARGE = 1000
TOKEN = "hf_secret"


@dataclass
class Repository:
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """By hash, in their order."""
    tags: dict[str, str] = field(default_factory=dict)
    """Name -> hash of a commit."""

    def __post_init__(self) -> None:
        self.commit({".gitattributes": b"*.safetensors filter=lfs\n"})

    def commit(self, files: dict[str, bytes]) -> str:
        digest = hashlib.sha1(b"".join([str(len(self.commits)).encode(), *files.values()])).hexdigest()
        self.commits[digest] = files
        return digest

    def find(self, revision: str) -> str | None:
        known = {commit: commit for commit in self.commits} | self.tags | {"main": list(self.commits)[-1]}
        return known.get(revision)

    @property
    def files(self) -> dict[str, bytes]:
        return list(self.commits.values())[-1]


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        """Content of large files by its SHA-256."""
        self.altered: dict[str, bytes] = {}
        """Path -> bytes that are sent in the place of a file's own."""
        self.uploaded: list[str] = []
        """The SHA-256 of every large file that came, each time."""
        self.hang_after = 10**9
        """Large files that are taken; what comes after them waits for `released`."""
        self.hanging = threading.Event()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """Say nothing of clients that have gone."""


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def allowed(self, write: bool, name: str) -> Repository | None:
        """Give a repository that the caller may use; answer as the Hub does, if there is none."""
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        found = self.server.repositories.get(name)
        if found is None or (found.private and not known):
            self.answer({"error": "Repository not found"}, 404 if known else 401, {"X-Error-Code": "RepoNotFound"})
            return None
        if write and not known:
            self.answer({"error": "Forbidden"}, 403)
            return None
        return found

    def commit_of(self, repository: Repository, revision: str) -> str | None:
        commit = repository.find(unquote(revision))
        if commit is None:
            self.answer({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        return commit

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            repository = self.allowed(False, match[1])
            if repository and (commit := self.commit_of(repository, match[2] or "main")):
                siblings = [{"rfilename": name} for name in repository.commits[commit]]
                self.answer({"id": match[1], "sha": commit, "private": repository.private, "siblings": siblings})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            repository = self.allowed(False, match[1])
            if repository and (commit := self.commit_of(repository, match[2])):
                self.answer([entry(name, content) for name, content in repository.commits[commit].items()])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repository = self.allowed(False, match[1])
            if repository and (commit := self.commit_of(repository, match[2])):
                self.send_file(repository.commits[commit].get(unquote(match[3])), unquote(match[3]), commit)
        else:
            self.answer({"error": path}, 404)

    def send_file(self, content: bytes | None, path: str, commit: str) -> None:
        if content is None:
            self.answer({}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        facts = entry(path, content)
        etag = facts["lfs"]["oid"] if "lfs" in facts else facts["oid"]
        sent = self.server.altered.get(path, content)
        self.answer(sent, headers={"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def do_POST(self) -> None:
        path, body = self.path.partition("?")[0], self.body()
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer({"error": "Invalid username or password."}, 401)
            elif name in self.server.repositories:
                self.answer({"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}, 409)
            else:
                private = asked.get("visibility") == "private" or asked.get("private") is True
                self.server.repositories[name] = Repository(private)
                self.answer({"url": f"{self.server.url}/{name}"})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            if repository := self.allowed(True, match[1]):
                self.answer({"files": [self.mode(repository, each) for each in json.loads(body)["files"]]})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            if self.allowed(True, match[1]):
                objects = [{"oid": each["oid"], "size": each["size"]} for each in json.loads(body)["objects"]]
                for each in objects:
                    if each["oid"] not in self.server.large:
                        each["actions"] = {"upload": {"href": f"{self.server.url}/large/{each['oid']}"}}
                self.answer({"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            if repository := self.allowed(True, match[1]):
                files = self.changed(repository.files, [json.loads(line) for line in body.splitlines()])
                commit = repository.commit(files)
                self.answer({"commitOid": commit, "commitUrl": f"{self.server.url}/{match[1]}/commit/{commit}"})
        else:
            self.answer({"error": path}, 404)

    def mode(self, repository: Repository, asked: dict[str, Any]) -> dict[str, Any]:
        there = repository.files.get(asked["path"])
        oid = None if there is None else entry(asked["path"], there).get("lfs", entry(asked["path"], there))["oid"]
        mode = "lfs" if asked["size"] >= LARGE else "regular"
        return {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def changed(self, files: dict[str, bytes], lines: list[dict[str, Any]]) -> dict[str, bytes]:
        files = dict(files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        return files

    def do_PUT(self) -> None:
        content = self.body()
        digest = hashlib.sha256(content).hexdigest()
        if len(self.server.uploaded) >= self.server.hang_after:
            self.server.hanging.set()
            self.server.released.wait(60)
            return
        assert self.path == f"/large/{digest}"
        self.server.large[digest] = content
        self.server.uploaded.append(digest)
        with suppress(ConnectionError):
            self.answer({})


def entry(path: str, content: bytes) -> dict[str, Any]:
    """What the Hub lists of a file."""
    if len(content) < LARGE:
        return {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
    digest = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()
    lfs = {"oid": digest, "size": len(content), "pointerSize": len(pointer)}
    return {"type": "file", "path": path, "size": len(content), "oid": git_hash(pointer), "lfs": lfs}


def git_hash(content: bytes) -> str:
    """As `git hash-object` gives it."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def stand_in_for_the_hub(server: HubServer, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let huggingface_hub talk to the server, with its cache in a folder."""
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its server is another one
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@contextmanager
def serve_hub() -> Iterator[HubServer]:
    """Run a server while the block runs."""
    with HubServer() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.released.set()
        server.shutdown()
