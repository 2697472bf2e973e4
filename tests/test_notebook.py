"""The analysis notebook runs on the committed samples, draws every figure, and holds no outputs."""

import json
import sys

import pytest
from conftest import REPO_ROOT
from test_study_results import TRUTHS, plant

from cot.utils.files import write_answers
from cot.utils.study_results import ANSWER_KEYS, prepare_answers

NOTEBOOK = REPO_ROOT / "data" / "analysis.ipynb"
SAMPLES = REPO_ROOT / "data" / "samples"


def test_outputs_are_stripped():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_the_samples_are_small_result_files():
    for pattern in ("results_temp_*.json", "evaluation/results_temp_*.json", "metrics.jsonl"):
        assert list(SAMPLES.glob(pattern))
    fitted = json.loads((SAMPLES / "mastery.json").read_text())
    assert fitted["evaluation"]["answers"] == fitted["fitted_on"]["answers"]
    for path in SAMPLES.rglob("results_temp_*.json"):
        document = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
        assert document["status"] == "success" and document["schema_version"] == 3
        assert list(document)[-1] == "results" and document["results"]
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file()) < 900_000


@pytest.mark.slow
def test_the_notebook_runs_without_model_or_network_and_draws_every_figure(tmp_path, monkeypatch):
    """As committed, and twice more the section of the study: with planted raw answers, and with none."""
    import nbformat
    from nbclient import NotebookClient

    # a kernel of this very interpreter, whatever kernels the machine has
    kernel = tmp_path / "kernels" / "here"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    specification = {"argv": command, "display_name": "here", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(specification))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    write_answers(prepare_answers(plant(), TRUTHS), ANSWER_KEYS, tmp_path / "answers.jsonl.gz")
    (section,) = [cell for cell in notebook.cells if "recount" in cell.source and cell.cell_type == "code"]
    for studies in (f"[Path({str(tmp_path)!r})]", "[]"):
        notebook.cells.append(nbformat.v4.new_code_cell(f"STUDIES = {studies}\n{section.source}"))
    client = NotebookClient(
        notebook, timeout=120, kernel_name="here", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) == 6 + 2 + 1  # two studies are committed, and one is planted
    assert "after_20" in section.outputs[0]["data"]["text/html"]
    assert "no raw answers of cot/run_study.py in STUDIES" in notebook.cells[-1].outputs[0]["text"]
    table, verdicts, _ = notebook.cells[-2].outputs
    assert "shuffled" in table["data"]["text/html"] and "undecided" in verdicts["data"]["text/html"]
    assert "answers of sweeps" in outputs[0]["text"] and not outputs[0]["text"].startswith("0 ")
    assert not [output for output in outputs if output.get("name") == "stderr"]
