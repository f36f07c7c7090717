"""`phf push`, against a small server that speaks the Hub's protocol: nothing leaves by accident."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import HfApi, constants
from release_runs import get_run

from phf.config.release import Delete
from phf.errors import PHFError
from phf.release.folder import write_release
from phf.release.push import plan_upload, push_release


class Hub(BaseHTTPRequestHandler):
    """Repositories in memory: name -> {private, files}."""

    def log_message(self, *_):
        pass

    def answer(self, value, code=200):
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        repos = self.server.repos
        name = "/".join(self.path.split("?")[0].split("/")[3:5])
        if name not in repos:
            return self.answer({"error": "Repository not found"}, 404)
        repo = repos[name]
        files = [{"rfilename": file} for file in repo["files"]]
        return self.answer({"id": name, "private": repo["private"], "siblings": files, "sha": "0" * 40})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(self.path)
        if self.server.refuses:
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.server.repos:
                return self.answer({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
            self.server.repos[name] = {"private": asked["visibility"] == "private", "files": {}}
            return self.answer({"url": f"{self.server.url}/{name}"})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        name = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.server.repos[name]["files"][line["value"]["path"]] = content
        oid = "1" * 40
        return self.answer({"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid})


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.repos, server.requests, server.refuses = {}, [], False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.url, token="hf_none")


@pytest.fixture
def folder(small_config, tmp_path_factory, tmp_path):
    run = get_run("conditional", small_config, tmp_path_factory.mktemp("runs"))
    return write_release(run, tmp_path / "release", forget=[Delete()], license="mit")


def test_a_release_arrives_whole_and_private(folder, hub, api):
    upload = plan_upload(folder, "me/model")
    assert hub.requests == []
    assert push_release(upload, api=api) == f"{hub.url}/me/model"
    repo = hub.repos["me/model"]
    assert repo["private"] is True
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert repo["files"] == {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    push_release(plan_upload(folder, "me/model"), api=api)  # again: the same files


def test_public_only_if_asked(folder, hub, api):
    push_release(plan_upload(folder, "me/open", is_public=True), api=api)
    assert hub.repos["me/open"]["private"] is False
    sent = len(hub.requests)
    with pytest.raises(PHFError, match="exists and is public"):
        push_release(plan_upload(folder, "me/open"), api=api)
    assert not any("commit" in path for path in hub.requests[sent:])


def test_rows_of_an_earlier_model_do_not_stay_beside_it(folder, hub, api):
    hub.repos["me/model"] = {
        "private": True,
        "files": {".gitattributes": b"", "model-00001-of-2.safetensors": b"x"},
    }
    with pytest.raises(PHFError, match="model-00001-of-2"):
        push_release(plan_upload(folder, "me/model"), api=api)


def test_a_refusal_is_one_line(folder, hub, api):
    hub.refuses = True
    with pytest.raises(PHFError, match="401") as refused:
        push_release(plan_upload(folder, "me/model"), api=api)
    assert "\n" not in str(refused.value)
    nobody = HfApi(endpoint="http://127.0.0.1:9", token="hf_none")
    with pytest.raises(PHFError, match="check the network"):
        push_release(plan_upload(folder, "me/model"), api=nobody)


def test_what_may_not_leave(folder):
    with pytest.raises(PHFError, match="cannot name a repository"):
        plan_upload(folder, "me model")
    (folder / "notes.txt").write_text("x")
    with pytest.raises(PHFError, match=r"notes\.txt"):
        plan_upload(folder, "me/model")
    (folder / "notes.txt").unlink()
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(PHFError, match=r"model\.safetensors"):
        plan_upload(folder, "me/model")


def test_without_licence_nothing_leaves(small_config, tmp_path_factory, tmp_path):
    run = get_run("conditional", small_config, tmp_path_factory.mktemp("runs"))
    out = write_release(run, tmp_path / "release")
    with pytest.raises(PHFError, match="--license"):
        plan_upload(out, "me/model")


def test_the_plan_says_what_leaves(folder):
    *files, total = plan_upload(folder, "me/model", is_public=True).describe()
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS"]
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    assert [line.split()[-1] for line in files] == [*names, "SHA256SUMS"]
    assert "licence mit -> me/model (PUBLIC)" in total
