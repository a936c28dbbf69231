"""A folder goes to the hub and comes back: against a stand-in that speaks the hub's protocol."""

import base64
import hashlib
import json
import os
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import get_args

import fresh
import pytest
import torch
import transformers
from conftest import SMALL, must_refuse, must_run
from huggingface_hub import ModelCard

from disp_llm.config.names import Format
from disp_llm.exporter.exported import TEMPLATES
from disp_llm.exporter.formats import writer_of
from disp_llm.runs.sums import write_sums


class Hub(BaseHTTPRequestHandler):
    """Repositories in memory: create, preupload, large files, commit, resolve.

    As https://huggingface.co/docs/hub/api and the Git LFS batch API describe them.
    """

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def answer(self, status: int, content: bytes | dict | list = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        store, content = self.server.store, self.body()
        if self.headers.get("Authorization") != "Bearer secret":
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(content)
            name = "/".join(filter(None, [asked.get("organization") or "me", asked["name"]]))
            store["repositories"].setdefault(name, {})
            store["private"][name] = asked.get("private") or asked.get("visibility") == "private"
            return self.answer(200, {"url": f"http://{self.headers['Host']}/{name}", "id": name})
        if self.path == "/api/validate-yaml":
            card = ModelCard(json.loads(content)["content"])
            return self.answer(200, {"errors": [], "warnings": [], "card": str(card)})
        if "/preupload/" in self.path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(content)["files"]
            ]
            return self.answer(200, {"files": files})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                one | {"actions": {"upload": {"href": f"http://{self.headers['Host']}/lfs"}}}
                for one in json.loads(content)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        name = re.fullmatch(r"/api/models/(.+)/commit/main", self.path)[1]
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                store["repositories"][name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                store["repositories"][name][value["path"]] = store["large"][value["oid"]]
            elif line["key"] == "deletedFile":
                del store["repositories"][name][value["path"]]
            elif line["key"] == "header":
                store["commits"].append(value["summary"])
        url = f"http://{self.headers['Host']}/{name}/commit/{'0' * 40}"
        return self.answer(200, {"commitUrl": url, "commitOid": "0" * 40, "success": True})

    def do_PUT(self):
        content = self.body()
        self.server.store["large"][hashlib.sha256(content).hexdigest()] = content
        self.answer(200)

    def do_GET(self):
        asked = re.fullmatch(
            r"/api/models/(.+?/.+?)/(revision|tree)/[^/]+", self.path.partition("?")[0]
        )
        if asked and asked[1] in self.server.store["repositories"]:
            files = self.server.store["repositories"][asked[1]]
            if asked[2] == "revision":
                siblings = [{"rfilename": name} for name in files]
                return self.answer(200, {"id": asked[1], "sha": "0" * 40, "siblings": siblings})
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in files.items()
            ]
            return self.answer(200, entries)
        found = re.fullmatch(r"/(.+?/.+?)/resolve/[^/]+/(.+)", self.path)
        files = self.server.store["repositories"].get(found[1], {}) if found else {}
        if not found or found[2] not in files:
            known = re.match(r"/api/models/(.+?/.+?)/tree/", self.path)
            of_folder = known is not None and known[1] in self.server.store["repositories"]
            code = "EntryNotFound" if files or of_folder else "RepoNotFound"
            return self.answer(404, X_Error_Code=code, X_Repo_Commit="0" * 40)
        content = files[found[2]]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.answer(200, content, ETag=etag, X_Repo_Commit="0" * 40)

    do_HEAD = do_GET


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.store = {"repositories": {}, "large": {}, "commits": [], "private": {}}
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def with_hub(hub, tmp_path, **more: str) -> dict[str, str]:
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    account = {"HF_TOKEN": "secret", "HF_HOME": str(tmp_path / "home")}
    return os.environ | account | settings | more


def push(*arguments: object, **env: str):
    """`disp-llm push` in a process that finds the hub at another address."""
    return fresh.start_command(*arguments, before=fresh.HUB_AGAIN, **env).wait()


FROM_HUB = """
import json, sys, torch, disp_llm
from transformers import AutoModelForCausalLM, AutoTokenizer
AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(json.dumps(model(torch.tensor([[5, 60, 7, 33]])).logits[0].tolist()))
"""


def test_a_download_says_how_far_it_is(llama_folder, hub, tmp_path):
    hub.store["repositories"]["me/whole"] = {
        path.name: path.read_bytes() for path in llama_folder.iterdir() if path.is_file()
    }
    asked = ["generate", "me/whole", "one", "--max-new-tokens", "2"]
    done = fresh.python(fresh.COMMAND, *asked, **with_hub(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    assert "downloading me/whole, MB" in done.stderr
    again = fresh.python(fresh.COMMAND, *asked, **with_hub(hub, tmp_path))
    assert again.returncode == 0, again.stderr
    assert "downloading" not in again.stderr
    assert again.stdout.splitlines()[:2] == done.stdout.splitlines()[:2]


def test_push_and_load_from_the_hub(small_run, hub, tmp_path):
    """What was there before goes only where transformers would load it together with the new."""
    folder = small_run[0] / "keep-0.5"
    parts = ("model-00001-of-00002.safetensors", "model.safetensors.index.json")
    hub.store["repositories"]["me/smaller"] = dict.fromkeys((*parts, "mine.txt"), b"old")
    arguments = ["push", folder, "me/smaller", "--private", "--json"]
    done = fresh.python(fresh.COMMAND, *arguments, **with_hub(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["name"] == "me/smaller"
    assert found["url"].endswith("/me/smaller")
    files = hub.store["repositories"]["me/smaller"]
    assert set(files) == {path.name for path in folder.iterdir()} | {"mine.txt"}
    assert len(hub.store["commits"]) == 1
    assert hub.store["private"] == {"me/smaller": True}
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert 'from_pretrained("me/smaller"' in card.text
    assert "vllm serve me/smaller" in card.text
    loaded = fresh.run(fresh.HUB_AGAIN + FROM_HUB, "me/smaller", **with_hub(hub, tmp_path))
    assert loaded.returncode == 0, loaded.stderr
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    wanted = model(torch.tensor([[5, 60, 7, 33]])).logits[0]
    torch.testing.assert_close(
        torch.tensor(json.loads(loaded.stdout.splitlines()[-1])), wanted, rtol=0, atol=1e-6
    )


def test_only_what_belongs_in_a_model_folder_arrives(small_run, hub, tmp_path):
    folder, secret = tmp_path / "model", tmp_path / "id_rsa"
    shutil.copytree(small_run[0] / "keep-0.5", folder)
    secret.write_text("SECRET")
    (folder / TEMPLATES).mkdir()
    (folder / TEMPLATES / "tools.jinja").write_text("{{ messages }}")
    (folder / "LICENSE.txt").write_text("MIT")
    write_sums(folder)
    own = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    (folder / "key").symlink_to(secret)
    strange = [
        *(".env", ".git/config", "notes.ipynb", "notes.md", "train.log", "pytorch_model.bin"),
        *("optimizer.pt", "training_args.bin", "masks.safetensors", "modeling_other.py"),
        *("evil_disp_llm.py", ".config.json", "LICENSES/key", "checkpoint-20/config.json"),
        *(f"{TEMPLATES}/.env", f"{TEMPLATES}/key.txt"),
    ]
    for name in strange:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("SECRET")
    done = push("push", folder, "me/smaller", "--json", **with_hub(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    files = hub.store["repositories"]["me/smaller"]
    assert set(files) == own
    assert not any(b"SECRET" in content for content in files.values())
    sums = dict(line.split("  ")[::-1] for line in files["SHA256SUMS"].decode().splitlines()[1:])
    found = {name: hashlib.sha256(files[name]).hexdigest() for name in own - {"SHA256SUMS"}}
    assert sums == found
    (line,) = [line for line in done.stderr.splitlines() if "left out" in line]
    hidden = {".git/config": ".git/", f"{TEMPLATES}/.env": "key"}
    left_out = {hidden.get(name, name) for name in strange} | {"key"}
    assert set(json.loads(done.stdout)["left_out"]) == left_out
    assert all(name in line for name in left_out)


@pytest.mark.parametrize("name", get_args(Format))
def test_every_format_has_its_file(name):
    writer = writer_of(name)
    assert callable(writer.check)
    assert callable(writer.write)


@pytest.mark.parametrize("form", ["plain", "int8"])
def test_another_format_of_a_run_is_pushed(form, hub, llama_folder, text_file, tmp_path):
    run = tmp_path / "run"
    flags = ("--text", text_file, "--for", "anywhere", "--keep", 0.5, "--output-dir", run)
    done = must_run("prune", llama_folder, *flags, *SMALL)
    folder = run / "keep-0.5"
    before = (folder / "card.json").read_bytes()
    done = push("push", folder, "me/other", "--to", form, **with_hub(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    files = hub.store["repositories"]["me/other"]
    plain = form == "plain"
    assert (json.loads(files["config.json"])["model_type"] == "llama") == plain
    assert bool([name for name in files if name.endswith(".py")]) != plain
    assert json.loads(files["card.json"])["result"].get("quantised") or plain
    assert (folder / "card.json").read_bytes() == before


@pytest.mark.parametrize("trouble", ["token", "network", "name", "folder"])
def test_what_cannot_be_pushed_is_one_line(small_run, hub, tmp_path, trouble):
    folder, name, more = small_run[0] / "keep-0.5", "me/smaller", {}
    if trouble == "token":
        more = {"HF_TOKEN": "stolen"}
    elif trouble == "network":
        more = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    elif trouble == "name":
        name = "me/bad name"
    else:
        folder = small_run[0]
    done = push("push", folder, name, **with_hub(hub, tmp_path) | more)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("disp-llm: ")]
    assert len(lines) == 1
    assert ("FOLDER" if trouble == "folder" else name) in lines[0]
    assert hub.store["commits"] == []


def test_save_copies_and_names_the_place(small_run, tmp_path):
    folder, place = small_run[0] / "keep-0.5", tmp_path / "mine" / "smaller"
    must_run("convert", folder, "--to", "folder", "--output-dir", place)
    card = ModelCard((place / "README.md").read_text())
    assert 'from_pretrained("smaller"' in card.text
    assert str(tmp_path) not in card.text
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (place / name).read_bytes() == (folder / name).read_bytes()
    again = must_refuse("convert", folder, "--to", "folder", "--output-dir", place)
    assert "--output-dir" in again.stderr


def test_card_states_what_was_measured(small_run):
    folder, result = small_run
    model = next(m for m in result["models"] if m["folder"] == str(folder / "keep-0.5"))
    card = ModelCard((folder / "keep-0.5" / "README.md").read_text())
    (measured,) = card.data.eval_results
    assert measured.metric_type == "perplexity"
    assert measured.metric_value == round(model["measured"]["perplexity"], 4)
    for stated in (
        f"{model['block_parameters']:,}",
        f"{model['parameters']:,}",
        f"{model['keep']:.2%}",
        f"{model['keep_total']:.2%}",
        f"{model['bytes']:,}",
        f"{model['measured']['perplexity']:.2f}",
        f"{model['measured']['perplexity_stderr']:.2f}",
        f"{result['tokens_seen']:,}",
        "vllm serve",
        "trust_remote_code=True",
        "lm_eval",
    ):
        assert stated in card.text, stated


def test_licence_and_base_of_the_original_are_taken_over(llama_folder, tmp_path):
    from disp_llm.models.source import base_and_license

    assert base_and_license(str(llama_folder)) == ("", "")
    folder = tmp_path / "original"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: gemma\nbase_model: a/b\n---\n# A model\n")
    assert base_and_license(str(folder)) == ("a/b", "gemma")
    assert base_and_license("smollm2-135m")[1] == "apache-2.0"
