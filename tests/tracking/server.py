"""A local stand-in for wandb's server: it answers what uploads, views and agents ask, and remembers what was asked.

The names of the operations are those that wandb 0.31 and wandb-workspaces 0.4 send; `operations` of a test adds or replaces
answers.
"""

import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TIME = "2026-01-01T00:00:00"
LAST = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
PROJECT = {
    "__typename": "Project", "id": "p", "name": "wmdd", "entityName": "team", "createdAt": TIME, "isBenchmark": False,
    "user": None,
}  # fmt: skip


class Server(ThreadingHTTPServer):
    """Listens on a free port of this machine.

    Attributes:
        asked: name and variables of each GraphQL request, in their order.
        streamed: path and content of what runs have sent.
        stored: path and bytes of the files that were uploaded.
        views: what was saved of workspaces and reports, by id.
        operations: the answers: a function of the variables by the name of the operation; a PermissionError is a refusal.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked, self.streamed, self.stored, self.views = [], [], {}, {}
        self.operations = {
            "RunResumeStatus": lambda _: {"model": None},
            "ServerFeaturesQuery": lambda _: {"serverInfo": {"features": []}},
            "GetDefaultEntity": lambda _: {"viewer": {"id": "u", "entity": "team"}},
            "Viewer": lambda _: {"viewer": {"id": "u", "entity": "team", "username": "user", "flags": "{}"}},
            "UpsertBucket": self._bucket,
            "CreateRunFiles": self._files,
            "CreateArtifact": lambda _: {
                "createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": {}}}
            },
            "GetProjects": lambda _: {"models": {"pageInfo": LAST, "edges": [{"node": PROJECT}]}},
            "ProjectInternalId": lambda _: {"project": {"internalId": "UHJvamVjdEludGVybmFsSWQ6MQ=="}},
            "View": self._view,
            "ProjectViews": self._view,
            "UpsertView2": self._save,
            "upsertView": self._save,
            "NotifyScriptableRunAlert": lambda _: {"notifyScriptableRunAlert": {"success": True}},
        }

    def handle_error(self, request, client_address):
        """Say nothing when a client leaves in the middle; what the stand-in gets wrong is said."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def variables(self, operation):
        """What requests of an operation asked for."""
        return [variables for name, variables in self.asked if name == operation]

    def _bucket(self, variables):
        project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "team"}}
        bucket = {"id": "b", "name": variables["name"], "displayName": "", "project": project, "historyLineCount": 0}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def _view(self, asked):
        kind, name = asked.get("viewType", "runs"), asked.get("viewName")
        views = [view for view in self.views.values() if view["type"] == kind and name in (None, view["name"])]
        return {"project": {"allViews": {"edges": [{"node": view, "cursor": "c"} for view in views], "pageInfo": LAST}}}

    def _save(self, sent):
        key = sent.get("id") or f"view{len(self.views)}"
        project = {"name": sent["projectName"], "entityName": sent["entityName"]}
        self.views[key] = view = sent | {
            "id": key,
            "project": project,
            "user": {},
            "updatedAt": TIME,
            "createdAt": TIME,
        }
        return {"upsertView": {"view": view, "inserted": not sent.get("id")}}

    def _files(self, variables):
        files = [{"name": name, "uploadUrl": f"{self.url}/stored/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Say nothing."""

    def _answer(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _content(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_GET(self):
        self._answer({})

    def do_PUT(self):
        self.server.stored[self.path.removeprefix("/stored/")] = self._content()
        self._answer({})

    def do_POST(self):
        body = self._content()
        if self.path.startswith("/sdk/"):  # what wandb measures of itself
            return self._answer({})
        content = json.loads(body)
        if "query" not in content:
            self.server.streamed.append((self.path, content))
            return self._answer({})
        name = content.get("operationName") or re.search(r"(?:query|mutation)\s+(\w+)", content["query"])[1]
        variables = content.get("variables") or {}
        self.server.asked.append((name, variables))
        try:
            self._answer({"data": self.server.operations[name](variables)})
        except (KeyError, PermissionError) as error:
            self._answer({"errors": [{"message": str(error)}]})


@contextmanager
def serving() -> Iterator[Server]:
    """Run a server for a while."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
