"""Training runs on the disk: their folders, their checkpoints, and the policies that they leave behind.

A run folder is found again when unfinished, locked while a process trains in it, and described by its
`run.json`. The trainer writes a checkpoint file by file, so a folder that exists may be half of one: after
the last file a list of all files with their fingerprints is added, and only a folder that agrees with it
counts. A policy is a training run's folder (`run.json` and `model/`), a model or adapter folder, or a hub
name.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cot.utils.errors import UserError
from cot.utils.files import lock_file, read_json, read_json_lines, timestamp, write_json
from cot.utils.model_names import BASE, ModelSource, family, fingerprint_files, resolve_model
from cot.utils.paths import DATA_DIR, writable_dir

COMPLETE = "complete.json"
SET_ASIDE = "broken-"
# Parts of a run's identity that are a hash of files and no flag, and what to call them.
CONTENTS = {
    "code_version": "the code",
    "model_revision": "--model_name: the weights",
    "students_content": "--profiles_dir: the profiles or memories",
    "questions_content": "--dataset: the questions",
}
POLICY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
NAMES_BY_MEMORY = {"own": "ipo", "none": "no_memory", "shuffled": "shuffled_memory"}  # of the run's prompts
MAKE_ONE = "make one with: python rl/train_rl_memory.py; or name policies with --trained NAME=PATH"


# --- the folder of a run ----------------------------------------------------------------------------------


@dataclass
class RunFolder:
    """One run's folder.

    Attributes:
        identity: what decides the run; a checkpoint made with another one is not continued.
        checkpoint: to continue from; None at the start.
        started: when the run was begun first, whose date a chat template may show.
    """

    path: Path
    identity: dict
    checkpoint: Path | None
    started: str
    processes: Any  # accelerate's PartialState
    lock: Any = None

    def begin(self, config: dict, device: str) -> dict:
        """Writes `run.json`, cuts the metrics at the checkpoint's step; returns the record."""
        from cot.utils.results import environment

        record = {
            "status": "running",
            "started": self.started,
            "config": config | {"identity": self.identity},
            "environment": environment(device),
        }
        if self.processes.is_main_process:
            write_json(self.path / "run.json", record)
            step = step_of(self.checkpoint) if self.checkpoint else -1
            for name in ("metrics.jsonl", "completions.jsonl"):
                keep_up_to(self.path / name, step)
            if self.checkpoint:
                print(f"continues from {self.checkpoint.name}", flush=True)
        self.processes.wait_for_everyone()
        return record

    def close(self, record: dict, status: str) -> None:
        """Writes how the run ended, and lets another process have the folder."""
        if self.processes.is_main_process:
            write_json(self.path / "run.json", record | {"status": status, "finished": timestamp()})
            self.lock.release()

    def finish(self, record: dict) -> None:
        """Writes the curves, the model's card and the summary of a run that came to its end."""
        from cot.utils.figures import draw_training_curves
        from rl.report import before_and_after, write_card

        lines = [line for _, line in read_json_lines(self.path / "metrics.jsonl")]
        draw_training_curves(lines, self.path / "curves.png")
        write_card(self.path / "model", record["config"], lines)
        before, after = before_and_after(lines)
        self.close(record | {"summary": {"before": before, "after": after}}, "success")
        print(f"before: {before}\nafter:  {after}\nmodel:  {self.path / 'model'}", flush=True)


def open_run(
    output_dir: Path | None, source: ModelSource, identity: dict, resume: str, processes
) -> RunFolder:
    """The named folder; else the unfinished run of the very same settings; else a new one.

    Args:
        identity: settings that decide the run; the code and the model's revision are added.
        resume: `auto`, `never` or a checkpoint's folder.

    Raises:
        UserError: a finished run, another process at it, or a checkpoint made with other settings.
    """
    from accelerate.utils import broadcast_object_list

    from cot.utils.results import code_version

    identity = identity | {"model_revision": source.revision, "code_version": code_version()}
    path, checkpoint, started, problem, lock = None, None, timestamp(), None, None
    if processes.is_main_process:
        try:
            path = writable_dir(output_dir or _unnamed_folder(source, identity, resume))
            busy = f"--output_dir {path}: another process trains there; wait for it or stop it"
            lock = lock_file(path / "run.lock", busy)
            checkpoint = _pick_checkpoint(path, identity, resume)
            earlier = read_run(checkpoint.parent if checkpoint else path)
            if checkpoint or (resume == "auto" and earlier.get("config", {}).get("identity") == identity):
                started = earlier.get("started", started)
        except UserError as error:
            problem = str(error)

    found: list = [path, checkpoint, started, problem]
    if processes.num_processes > 1:
        broadcast_object_list(found)
    path, checkpoint, started, problem = found
    if problem:
        raise UserError(problem)
    return RunFolder(path, identity, checkpoint, started, processes, lock)


def _pick_checkpoint(path: Path, identity: dict, resume: str) -> Path | None:
    if read_run(path).get("status") == "success" and resume != "never":
        raise UserError(f"--output_dir {path}: this run is finished; name another folder")
    checkpoint = find_checkpoint(path, resume)
    if checkpoint is not None:
        refuse_changes(read_run(checkpoint.parent).get("config", {}).get("identity", {}), identity)
    return checkpoint


def _unnamed_folder(source: ModelSource, identity: dict, resume: str) -> Path:
    root = DATA_DIR / family(source)
    if resume == "auto":
        for file in sorted(root.glob("rl_*/run.json"), reverse=True):
            run = read_run(file.parent)
            if run.get("status") != "success" and run.get("config", {}).get("identity") == identity:
                return file.parent
    return root / f"rl_{timestamp()}"


def read_run(path: Path) -> dict:
    """A folder's `run.json`; empty where there is none that can be read."""
    try:
        return read_json(path / "run.json")
    except UserError:
        return {}


# --- checkpoints ------------------------------------------------------------------------------------------


def mark_complete(checkpoint: Path) -> None:
    """Lists a checkpoint's files and their fingerprints in it, when all of them are written."""
    paths = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != COMPLETE)
    files = {str(path.relative_to(checkpoint)): fingerprint_files([path]) for path in paths}
    write_json(checkpoint / COMPLETE, {"files": files})


def is_complete(checkpoint: Path) -> bool:
    """Whether the folder holds every file of its list as it was written."""
    try:
        files = read_json(checkpoint / COMPLETE)["files"]
        return bool(files) and all(
            fingerprint_files([checkpoint / name]) == listed for name, listed in files.items()
        )
    except (UserError, OSError, KeyError):
        return False


def step_of(checkpoint: Path) -> int:
    """The optimizer step in a checkpoint's name."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoint folders, complete or not, the oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    return sorted(found, key=step_of)


def find_checkpoint(folder: Path, resume: str) -> Path | None:
    """The checkpoint to continue from, None to start afresh; broken ones are renamed out of the way.

    Args:
        resume: `auto`, `never` or a checkpoint's path.

    Raises:
        UserError: `never` in a folder that has checkpoints, or a path that is no complete checkpoint.
    """
    if resume not in ("auto", "never"):
        path = Path(resume)
        if not is_complete(path) or not path.name.rpartition("-")[2].isdecimal():
            raise UserError(
                f"--resume {resume}: no complete checkpoint there; expected auto, never or a path"
            )
        return path

    found = checkpoints(folder)
    if resume == "never" and found:
        raise UserError(f"--resume never: {found[-1]} exists; name another --output_dir or remove it")
    for path in found:
        if not is_complete(path):
            path.rename(_free_name(path))
            print(f"checkpoint {path.name} is incomplete; set aside as {SET_ASIDE}{path.name}", flush=True)
    return max(checkpoints(folder), key=step_of, default=None)


def _free_name(path: Path) -> Path:
    number, name = 1, path.with_name(SET_ASIDE + path.name)
    while name.exists():
        number += 1
        name = path.with_name(f"{SET_ASIDE}{path.name}_{number}")
    return name


def refuse_changes(before: Mapping, now: Mapping) -> None:
    """Stops a run that would continue another one's checkpoint.

    Raises:
        UserError: naming the first setting that differs, with both values, or what changed on the disk.
    """
    for name, value in now.items():
        if name not in before or before[name] == value:
            continue
        if name in CONTENTS:
            raise UserError(
                f"{CONTENTS[name]} changed since the checkpoint was made; start in another --output_dir"
            )
        raise UserError(
            f"--{name} {value}: the checkpoint was made with {before[name]}; use that,"
            " or start in another --output_dir"
        )


def keep_up_to(path: Path, step: int) -> None:
    """Drops the lines of a JSON lines file that lie after a step, and a torn last one."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            if line and json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            continue
    path.write_text("".join(kept), encoding="utf-8")


# --- policies ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Policy:
    """One model that answers.

    Attributes:
        run: the folder of the training run that made it; None for a model that was only named.
        config: that run's settings; empty without a run.
    """

    name: str
    source: ModelSource
    run: Path | None = None
    config: dict = field(default_factory=dict)

    def describe(self) -> dict:
        """What a result file records about it."""
        return {
            "name": self.name,
            "model": self.source.name,
            "kind": self.source.kind,
            "revision": self.source.revision,
            "run": str(self.run) if self.run else None,
            "memory": self.config.get("memory"),
            "reward_weights": self.config.get("weights"),
            "training_seed": self.config.get("seed"),
        }


def parse_trained(text: str) -> tuple[str | None, str]:
    """`NAME=PATH`, or a path alone, for argparse's `type`.

    >>> parse_trained("ipo=data/tutor/rl_1"), parse_trained("data/tutor/rl_1")
    (('ipo', 'data/tutor/rl_1'), (None, 'data/tutor/rl_1'))
    """
    name, separator, path = text.partition("=")
    if not separator:
        return None, text
    if not POLICY_NAME.fullmatch(name) or name == BASE or not path:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected NAME=PATH, the name of A-Z a-z 0-9 . _ - and not {BASE!r}"
        )
    return name, path


def newest_run(root: Path = DATA_DIR) -> Path:
    """The completed training run that started last.

    Raises:
        UserError: there is none; says how to make one.
    """
    runs = [(read_run(file.parent), file.parent) for file in root.glob("*/rl_*/run.json")]
    complete = [
        (str(run.get("started")), folder)
        for run, folder in runs
        if run.get("status") == "success" and (folder / "model").is_dir()
    ]
    if not complete:
        raise UserError(f"{root}: no completed training run; {MAKE_ONE}")
    return max(complete)[1]


def resolve_policies(
    base: str | None, trained: Sequence[tuple[str | None, str]] | None, revision: str | None = None
) -> list[Policy]:
    """The base first, then the trained ones; without names the newest run and its base.

    Args:
        revision: of the base; None for the one that the runs began with, and else its main branch.

    Raises:
        UserError: nothing there, a run that is not finished, two policies of one name, or no single base.
    """
    named = trained or [(None, str(newest_run()))]
    policies = [_resolve_trained(name, path) for name, path in named]
    names = [policy.name for policy in policies]
    if repeated := sorted(name for name in set(names) if names.count(name) > 1):
        raise UserError(f"--trained: two policies are called {repeated[0]}; name them with NAME=PATH")

    bases = {_name_base(**policy.config["model"]) for policy in policies if policy.config}
    bases |= {
        _name_base(policy.source.base.name, policy.source.base.kind, policy.source.base.revision)
        for policy in policies
        if policy.source.base and not policy.config
    }
    if base is None and len(bases) != 1:
        found = f"the policies have {len(bases)} bases" if bases else "no policy names its base"
        raise UserError(f"--base: {found}; name the model to compare with")
    name, begun_with = (base, None) if base else bases.pop()
    return [Policy(BASE, resolve_model(name, revision or begun_with)), *policies]


def _name_base(name: str, kind: str = "", revision: str = "", **_) -> tuple[str, str | None]:
    """The name of a model, and the commit of a hub model, as a result file describes it."""
    return name, revision if kind == "hub" else None


def _resolve_trained(name: str | None, path: str) -> Policy:
    folder = Path(path).expanduser()
    if not (folder / "run.json").is_file():
        return Policy(name or folder.name, resolve_model(path))
    run = read_run(folder)
    config = run.get("config") or {}
    if run.get("status") != "success" or "name" not in config.get("model", {}):
        raise UserError(
            f"--trained {path}: this training run is not finished (status {run.get('status')});"
            " continue it with the command that began it"
        )
    name = name or NAMES_BY_MEMORY.get(config.get("memory"), folder.name)
    return Policy(name, resolve_model(str(folder / "model")), folder, config)
