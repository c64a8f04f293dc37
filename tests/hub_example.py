"""What `huggingface_hub` asks of the hub to upload and download a repository, answered on this machine."""

import base64
import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from unittest.mock import patch

from huggingface_hub import constants

COMMIT = "0" * 40


@contextmanager
def local_hub():
    """A block in which the hub is a server of this process: repository to its files, name to bytes."""
    repositories: dict[str, dict[str, bytes]] = {}

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, body: bytes | dict | list, status: int = 200, **headers: object):
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in ({"Content-Length": len(body)} | headers).items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self):
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            owner, name, action = self.path.removeprefix("/api/models/").split("/")[:3]
            if self.path == "/api/repos/create":
                asked = json.loads(sent)
                repository = f"{asked.get('organization', 'somebody')}/{asked['name']}"
                repositories[repository] = {}
                self.answer({"url": f"{constants.ENDPOINT}/{repository}", "private": asked.get("private")})
            elif action == "preupload":
                files = json.loads(sent)["files"]
                told = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
                self.answer({"files": [{"path": file["path"], **told} for file in files]})
            elif action == "commit":
                for line in map(json.loads, sent.splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        repositories[f"{owner}/{name}"][line["value"]["path"]] = content
                self.answer({"commitUrl": f"{constants.ENDPOINT}/{owner}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
            else:
                self.answer({"errors": [], "warnings": []})

        def do_GET(self):
            parts = self.path.partition("?")[0].strip("/").split("/")
            api = parts[0] == "api"
            repository = "/".join(parts[2:4] if api else parts[:2])
            files = repositories.get(repository)
            if files is None:
                self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            elif not api:
                content = files["/".join(parts[4:])]
                self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)
            elif parts[4] == "tree":
                entry = {"type": "file", "oid": COMMIT}
                self.answer([entry | {"path": name, "size": len(content)} for name, content in files.items()])
            else:
                names = [{"rfilename": name} for name in files]
                self.answer({"id": repository, "sha": COMMIT, "siblings": names, "private": True})

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    changes = {"ENDPOINT": address, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_OFFLINE": False}
    try:
        with patch.multiple(constants, **changes):
            yield repositories
    finally:
        server.shutdown()
        server.server_close()
