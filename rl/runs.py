"""Training runs on the disk: their folders, their locks, and their checkpoints.

A run folder is found again when unfinished, locked while a process trains in it, and described by its
`run.json`. The trainer writes a checkpoint file by file, so a folder that exists may be half of one: after
the last file a list of all files with their fingerprints is added, and only a folder that agrees with it
counts.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cot.utils.errors import UserError
from cot.utils.files import lock_file, read_json, read_json_lines, timestamp, write_json
from cot.utils.model_names import ModelSource, family, fingerprint_files
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
    output_dir: Path | None,
    source: ModelSource,
    identity: dict,
    resume: str,
    processes,
    spread: bool = False,
) -> RunFolder:
    """The named folder; else the unfinished run of the very same settings; else a new one.

    Args:
        identity: settings that decide the run; the code and the model's revision are added.
        resume: `auto`, `never` or a checkpoint's folder.
        spread: FSDP spreads the weights over the processes.

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
            checkpoint = _pick_checkpoint(path, identity, resume, spread)
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


def _pick_checkpoint(path: Path, identity: dict, resume: str, spread: bool) -> Path | None:
    if read_run(path).get("status") == "success" and resume != "never":
        raise UserError(f"--output_dir {path}: this run is finished; name another folder")
    checkpoint = find_checkpoint(path, resume)
    if checkpoint is not None:
        refuse_changes(read_run(checkpoint.parent).get("config", {}).get("identity", {}), identity)
        if any(checkpoint.glob("pytorch_model_fsdp*")) != spread:
            how = "without FSDP" if spread else "under FSDP, in several processes"
            raise UserError(f"{checkpoint}: made {how}; continue it so, or start in another --output_dir")
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
