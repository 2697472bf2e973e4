"""The READMEs: every flag and its default, every key of real files, jq lines that run, commands, links."""

import argparse
import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import read_strictly, run_here

from cot.utils.cli import COT_PROMPT
from cot.utils.paths import REPO_ROOT
from cot.utils.textbook import load_chapters
from rl.settings import PRESETS

READMES = [REPO_ROOT / folder / "README.md" for folder in ("", "cot", "rl", "profiles", "data", "tests")]
HEADINGS = {  # of a script's flags in the README of its room
    "cot/run_baseline_cot.py": "",
    "cot/run_baseline_faiss.py": "",
    "cot/run_study.py": "The study",
    "cot/run_dialogues.py": "Tutoring dialogues",
    "rl/train_rl_memory.py": "Training",
    "rl/run_experiment.py": "The experiment",
    "rl/simulate_students.py": "Simulated students",
    "rl/import_students.py": "Real students",
    "rl/fit_mastery.py": "Fitted mastery",
    "rl/warm_start.py": "The small policy",
    "evaluate_rl.py": "The evaluation",
}
ROOM_OF = {script: script.partition("/")[0] if "/" in script else "rl" for script in HEADINGS}
BENCHMARKS = (
    *("tests/bench_engine.py", "tests/bench_prompts.py", "tests/bench_retrieval.py"),
    *("tests/bench_scale.py", "tests/long_run.py"),
)
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", flags=re.DOTALL | re.MULTILINE)
# Keys that are data: whose record, of which chapter, by which policy.
NAMES = {*(chapter.id for chapter in load_chapters()), "S002", "S003", "S005", "base", "ipo"}
NAMES |= {"S0000", "S0002", "U0001"}  # generated students


def parser_of(script: str) -> argparse.ArgumentParser:
    return importlib.import_module(script.removesuffix(".py").replace("/", ".")).build_parser()


def flags_of(script: str) -> dict[str, argparse.Action]:
    """A script's flags by their names."""
    actions = parser_of(script)._actions
    return {action.option_strings[0]: action for action in actions if action.dest != "help"}


def read(room: str) -> str:
    return (REPO_ROOT / room / "README.md").read_text(encoding="utf-8")


def section_of(script: str) -> str:
    """What a README says of a script: from its heading on, for the scripts that share one."""
    titles = {part.split("\n")[0]: part for part in read(ROOM_OF[script]).split("\n## ")}
    if ROOM_OF[script] == "rl":
        return next(part for title, part in titles.items() if title.startswith(HEADINGS[script]))
    # a study has the sweeps' flags, and a section of those with other defaults
    studies = [HEADINGS[name] for name in ("cot/run_study.py", "cot/run_dialogues.py")]
    own = titles.get(HEADINGS[script], "")
    return "\n".join([*(part for title, part in titles.items() if title not in studies), own])


def blocks(text: str, *kinds: str) -> list[str]:
    """The contents of the fenced blocks of these kinds, `""` for those that name none."""
    return [content for kind, content in FENCED.findall(text) if kind in kinds]


def spans(text: str) -> list[str]:
    """What stands between single backticks, outside fenced blocks."""
    return re.findall(r"`([^`\n]+)`", FENCED.sub("", text))


def named_in(text: str) -> set[str]:
    """The words between single backticks: what a README calls by its name."""
    return {word.lstrip("-") for span in spans(text) for word in re.findall(r"[\w/<>-]+", span)}


def keys_of(value) -> set[str]:
    """All keys of a JSON value at any depth, those that are data left out."""
    if isinstance(value, list):
        return set().union(*map(keys_of, value))
    if not isinstance(value, dict):
        return set()
    names = {key for key in value if key not in NAMES and not key.startswith("/") and "@" not in key}
    names = {re.sub(r"^rewards/\w+/", "rewards/<part>/", name) for name in names}
    names = {re.sub(r"^pass_at_[2-9]$", "pass_at_<k>", name) for name in names}
    names = {re.sub(r"_(first|second)_half$", "", name) for name in names}
    return names.union(*map(keys_of, value.values()))


def undocumented(found, *texts: str) -> list[str]:
    """The keys of JSON values that no text calls by name."""
    return sorted(keys_of(found) - set().union(*map(named_in, texts)))


def run_lines(lines: list[str], folder: Path) -> list[str]:
    """What each line prints in a folder; fails where one fails or prints nothing."""
    outputs = []
    for line in lines:
        done = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.strip(), (line, done.stderr)
        outputs.append(done.stdout)
    return outputs


needs_jq = pytest.mark.skipif(shutil.which("jq") is None, reason="jq absent")


# --- flags, commands, links


def shown(value) -> str:
    """A default as a README writes it."""
    if isinstance(value, list | tuple):
        return " ".join(map(shown, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize("script", HEADINGS)
def test_every_flag_has_a_row_with_its_default(script):
    rows = dict(re.findall(r"^\| `(--\w+)` \| (.*)$", section_of(script), flags=re.MULTILINE))
    by_preset = PRESETS["cpu"] if script == "rl/train_rl_memory.py" else {}
    for flag, action in flags_of(script).items():
        assert flag in rows
        cells = rows[flag].split(" | ")
        if action.dest in by_preset:
            assert cells[:2] == [shown(preset[action.dest]) for preset in (PRESETS["cpu"], PRESETS["gpu"])], (
                flag
            )
        elif not (action.default in (None, COT_PROMPT, []) or isinstance(action.default, Path)):
            assert cells[0].strip("`") == shown(action.default), flag


@pytest.mark.parametrize("room", ["cot", "rl"])
def test_a_readme_lists_no_flag_that_is_gone(room):
    known = {flag for script, place in ROOM_OF.items() if place == room for flag in flags_of(script)}
    assert set(re.findall(r"^\| `(--\w+)` \|", read(room), flags=re.MULTILINE)) <= known


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_every_command_names_a_script_that_is_there_and_flags_that_it_has(readme):
    text = readme.read_text(encoding="utf-8")
    commands = [span for span in spans(text) if span.startswith("python ")]
    for block in blocks(text, "", "bash"):
        commands += block.replace("\\\n", " ").split("\n")
    for command in commands:
        for script, rest in re.findall(r"(?<![\w./])([\w./]+\.py)\b([^#&|]*)", command):
            assert (REPO_ROOT / script).is_file(), command
            if script in (*ROOM_OF, *BENCHMARKS):
                named = set(re.findall(r"--\w+", rest.replace("--no-", "--")))
                assert named <= set(flags_of(script)), command


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_every_relative_link_leads_to_a_file_and_its_heading(readme):
    text = FENCED.sub("", readme.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (readme.parent / path).resolve() if path else readme
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, link


# --- the files of real students


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Path:
    """A folder of eight students with eight answers each, and what is fitted to it in `mastery.json`."""
    folder = tmp_path_factory.mktemp("imported")
    rows = [f'{n},"{",".join("12" * 4)}","{",".join(format(n * 29 % 256, "08b"))}"' for n in range(1, 9)]
    (folder / "answers.csv").write_text("uid,concepts,responses\n" + "\n".join([*rows, "9,-1,-1"]) + "\n")
    flags = ["--format", "pykt", "--input", folder / "answers.csv", "--profiles_dir", folder]
    assert run_here(importlib.import_module("rl.import_students").main, *flags)[0] == 0
    flags = ["--input", folder, "--output", folder / "mastery.json", "--evaluate"]
    assert run_here(importlib.import_module("rl.fit_mastery").main, *flags)[0] == 0
    return folder


@pytest.mark.slow
def test_every_key_of_an_import_and_a_fit_is_documented(imported):
    report, fitted = (read_strictly(imported / name) for name in ("memory/import.json", "mastery.json"))
    assert report["left_out"] and fitted["evaluation"]
    assert undocumented(report, section_of("rl/import_students.py")) == []
    assert undocumented(fitted, section_of("rl/fit_mastery.py")) == []
    (line, *_) = (imported / "memory" / "1.jsonl").read_text().splitlines()
    assert undocumented(json.loads(line), read("profiles")) == []


def test_the_table_of_faults_names_every_row_and_tests_that_there_are():
    table = read("tests").split("## Which test tries which fault")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| ([FT]\d[^|]*) \| [^|]* \| (.*) \|$", table, flags=re.MULTILINE))
    for row, told in rows.items():
        for module, names in re.findall(r"(\w+): ((?:`\w+`(?:, )?)+)", told):
            code = (REPO_ROOT / "tests" / f"test_{module}.py").read_text(encoding="utf-8")
            for name in re.findall(r"`(\w+)`", names):
                assert f"def test_{name}(" in code, row
        assert "`" in told or "none" in told or ": all" in told, row
    assert len(rows) == 39 + 12
