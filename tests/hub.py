"""A stub of a model hub on 127.0.0.1: as much of its API as an upload uses. It keeps what it gets in a folder.

It says that it has no xet storage, as hubs other than Hugging Face's own do, so large files come by the LFS protocol.
With `xet` it offers a storage that then refuses everything: enough to see which way a client takes.
"""

import base64
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "hf_stubTokenThatNobodyMaySee"
LARGE = 20_000
"""Bytes from which a file is large; the real hub takes every file with certain names as large too."""
NAMESPACES = ("somebody", "their-lab")


class Hub(ThreadingHTTPServer):
    """Context manager. `files(repo)` are the committed files.

    Attributes:
        calls: the requests so far, as "METHOD path".
        repos: name -> visibility, committed files as path -> digest, number of commits.
        messages: of the commits.
        xet: whether to offer a xet storage.
        fails: part of a "METHOD path" -> status that the next request with it gets, once per entry of the list.
    """

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.calls, self.fails, self.lock = folder, [], {}, threading.Lock()
        self.repos, self.messages, self.xet = {}, [], False
        (folder / "objects").mkdir(parents=True)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def object(self, digest):
        return self.folder / "objects" / digest

    def keep(self, content):
        digest = hashlib.sha256(content).hexdigest()
        self.object(digest).write_bytes(content)
        return digest

    def files(self, repo):
        """Path -> content of the committed files of a repository."""
        return {path: self.object(digest).read_bytes() for path, digest in self.repos[repo]["files"].items()}

    def checkout(self, repo, folder):
        for path, content in self.files(repo).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        return folder


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, value=None, headers=()):
        body = json.dumps({} if value is None else value).encode()
        self.send_response(status)
        for name, text in (("Content-Type", "application/json"), ("Content-Length", str(len(body))), *headers):
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, message, code=None):
        headers = [("X-Error-Message", message)] + ([("X-Error-Code", code)] if code else [])
        self.answer(status, {"error": message}, headers)

    def content(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def serve(self):
        body, hub, path = self.content(), self.server, self.path.partition("?")[0]
        call = f"{self.command} {path}"
        hub.calls.append(call)
        with hub.lock:
            for part, statuses in hub.fails.items():
                if part in call and statuses:
                    return self.refuse(statuses.pop(0), "Internal Error - We're working hard to fix this")
        if self.command == "PUT":  # signed addresses of a storage: no token is sent there
            digest = path.removeprefix("/storage/")
            assert hashlib.sha256(body).hexdigest() == digest
            assert "Authorization" not in self.headers
            hub.keep(body)
            return self.answer(200)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "Invalid username or password.")
        for pattern, method in ROUTES.items():
            if found := re.fullmatch(pattern, call):
                return method(self, body, *found.groups())
        return self.refuse(404, "Not Found")

    do_GET = do_HEAD = do_POST = do_PUT = serve

    def create(self, body):
        asked = json.loads(body)
        owner, repo = asked["organization"] or "somebody", asked["name"]
        name = f"{owner}/{repo}"
        if owner not in NAMESPACES:
            return self.refuse(403, f'You don\'t have the rights to create a model under the namespace "{owner}".')
        if name in self.server.repos:
            return self.answer(
                409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}
            )
        self.server.repos[name] = {"visibility": asked.get("visibility", "public"), "files": {}, "commits": 0}
        return self.answer(200, {"url": f"{self.server.url}/{name}", "name": name})

    def validate(self, body):
        text = json.loads(body)["content"]
        wrong = [] if text.startswith("---\n") else [{"message": "empty or missing yaml metadata"}]
        return self.answer(200, {"errors": [], "warnings": wrong})

    def info(self, body, name):
        if name not in self.server.repos:
            return self.refuse(404, "Repository not found", "RepoNotFound")
        private = self.server.repos[name]["visibility"] == "private"
        return self.answer(200, {"id": name, "sha": "1" * 40, "private": private, "siblings": []})

    def preupload(self, body, name):
        if name not in self.server.repos:
            return self.refuse(404, "Repository not found", "RepoNotFound")
        kept = self.server.repos[name]["files"]
        files = []
        for file in json.loads(body)["files"]:
            mode, path = "lfs" if file["size"] >= LARGE else "regular", file["path"]
            oid = self.oid(kept[path], mode) if path in kept else None
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return self.answer(200, {"files": files})

    def resolve(self, body, name, path):
        """A file, or what it is where its content is not asked for."""
        if path not in self.server.repos.get(name, {"files": {}})["files"]:
            return self.refuse(404, "Entry not found", "EntryNotFound")
        content = self.server.files(name)[path]
        self.send_response(200)
        self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("ETag", f'"{self.server.repos[name]["files"][path]}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        return None

    def oid(self, digest, mode):
        """What git calls the content: of a large file its SHA-256."""
        if mode == "lfs":
            return digest
        content = self.server.object(digest).read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def xet(self, body, name):
        if not self.server.xet:
            return self.refuse(404, "Not Found")
        address, expires = f"{self.server.url}/xet", str(int(time.time()) + 3600)
        named = {"X-Xet-Cas-Url": address, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": expires}
        return self.answer(200, {"accessToken": "xet", "exp": int(expires), "casUrl": address}, named.items())

    def batch(self, body, name):
        asked, objects = json.loads(body), []
        assert asked["operation"] == "upload"
        assert "basic" in asked["transfers"]
        for entry in asked["objects"]:
            wanted = {"oid": entry["oid"], "size": entry["size"]}
            if not self.server.object(entry["oid"]).exists():
                upload = {"href": f"{self.server.url}/storage/{entry['oid']}"}
                verify = {"href": f"{self.server.url}/{name}.git/info/lfs/objects/verify"}
                wanted["actions"] = {"upload": upload, "verify": verify}
            objects.append(wanted)
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def verify(self, body, name):
        asked = json.loads(body)
        file = self.server.object(asked["oid"])
        right = file.exists() and file.stat().st_size == asked["size"]
        return self.answer(200) if right else self.refuse(422, "not there")

    def commit(self, body, name):
        repo = self.server.repos[name]
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.server.messages.append(value["summary"])
            elif entry["key"] == "file":
                repo["files"][value["path"]] = self.server.keep(base64.b64decode(value["content"]))
            else:
                assert entry["key"] == "lfsFile"
                assert self.server.object(value["oid"]).stat().st_size == value["size"]
                repo["files"][value["path"]] = value["oid"]
        repo["commits"] += 1
        oid = f"{repo['commits']:040x}"
        return self.answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid})


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = {
    "POST /api/repos/create": Handler.create,
    "POST /api/validate-yaml": Handler.validate,
    f"GET /api/models/{REPO}(?:/revision/main)?": Handler.info,
    f"(?:GET|HEAD) /{REPO}/resolve/[^/]+/(.+)": Handler.resolve,
    f"POST /api/models/{REPO}/preupload/main": Handler.preupload,
    f"GET /api/models/{REPO}/xet-write-token/main": Handler.xet,
    f"POST /{REPO}.git/info/lfs/objects/batch": Handler.batch,
    f"POST /{REPO}.git/info/lfs/objects/verify": Handler.verify,
    f"POST /api/models/{REPO}/commit/main": Handler.commit,
}
