"""Labelling in a browser: one page on this machine's own address, by the standard library."""

import io
import json
import re
import secrets
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from deas_vla.errors import UserError, require
from deas_vla.labelling.labelling import Labelling
from deas_vla.report.template import rendered

PICTURE = re.compile(r"picture/(\d{1,9})/(\d{1,9})\.jpg")
HEIGHT = 360
LONGEST = 200  # no body is longer
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; connect-src 'self'; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class LabelServer(ThreadingHTTPServer):
    """Serves `url` until it is shut down. Who does not know its random path, another user or page, gets nothing."""

    daemon_threads = True

    def __init__(self, labelling: Labelling, port: int = 0):
        """`port`: of the loopback address; 0: any that is free."""
        self.labelling, self.token = labelling, secrets.token_urlsafe(16)
        self.page = rendered(Path(__file__).with_name("page.html.j2"), title=labelling.folder.root.name).encode()
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise UserError(f"port {port} cannot be used ({error.strerror}); choose another: --port") from None
        self.url = f"http://127.0.0.1:{self.server_address[1]}/{self.token}/"


class _Handler(BaseHTTPRequestHandler):
    server: LabelServer

    def do_GET(self) -> None:
        path = self._path()
        if path == "":
            self._send(self.server.page, "text/html; charset=utf-8")
        elif path == "progress":
            self._progress()
        elif path is not None and (match := PICTURE.fullmatch(path)):
            try:
                picture = self.server.labelling.picture(int(match[1]), int(match[2]), HEIGHT)
            except (KeyError, IndexError):
                self._refuse(HTTPStatus.NOT_FOUND, "there is no such picture")
            except UserError as error:
                self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
            else:
                jpeg = io.BytesIO()
                require("PIL.Image", "report").fromarray(picture).save(jpeg, "JPEG", quality=88)
                self._send(jpeg.getvalue(), "image/jpeg", cached=True)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        path, length = self._path(), self.headers.get("Content-Length", "")
        if path not in ("outcome", "undo"):
            return self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
        if not length.isascii() or not length.isdigit() or int(length) > LONGEST:
            return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body must have at most {LONGEST} bytes")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except ValueError:
            body = None
        wanted = {"episode", "outcome"} if path == "outcome" else set()
        if not isinstance(body, dict) or body.keys() != wanted or type(body.get("episode", 0)) is not int:
            return self._refuse(HTTPStatus.BAD_REQUEST, f"the body must be a JSON object with {sorted(wanted)}")
        try:
            if path == "undo":
                self.server.labelling.undo()
            else:
                self.server.labelling.give(body["episode"], body["outcome"])
        except UserError as error:
            return self._refuse(HTTPStatus.CONFLICT, str(error))
        return self._progress()

    def _path(self) -> str | None:
        """What follows the random part, or None without it."""
        begin = f"/{self.server.token}/"
        return self.path.removeprefix(begin) if self.path.startswith(begin) else None

    def _progress(self) -> None:
        try:
            now = self.server.labelling.progress()
        except UserError as error:
            return self._refuse(HTTPStatus.CONFLICT, str(error))
        return self._send(json.dumps(asdict(now)).encode(), "application/json")

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        # What was not read of a body would be taken for the next request.
        self.close_connection = True
        self._send(json.dumps({"error": message}).encode(), "application/json", status)

    def _send(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, cached: bool = False) -> None:
        self.send_response(status)
        caching = {"Cache-Control": "private, max-age=3600" if cached else "no-store"}
        lengths = {"Content-Type": kind, "Content-Length": str(len(content))}
        for name, value in (HEADERS | caching | lengths).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing: the terminal has one line, the address."""


def label_on_page(labelling: Labelling, port: int = 0) -> None:
    """Serves the page until Ctrl-C."""
    first = labelling.progress().episode
    if first is not None:
        labelling.picture(first, 0, HEIGHT)  # LeRobot takes seconds to import: before the page is open
    with LabelServer(labelling, port) as server:
        print(f"open {server.url}\nCtrl-C ends; what was given is stored at once", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
