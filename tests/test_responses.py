"""Students' answers as arrays, read from their logs."""

from conftest import make_responses, write_logs

from rl.responses import read_responses


def test_answers_are_read_from_logs_in_order_and_by_skill_name(tmp_path):
    wanted = make_responses("b1 a0 b0", "a1", skills=("a", "b"))
    write_logs(tmp_path, wanted)
    (tmp_path / "memory" / "S0005.jsonl").touch()  # a student without answers
    found = read_responses(tmp_path, "--input")
    assert found.skills == ("a", "b")
    for name in ("student", "skill", "correct"):
        assert getattr(found, name).tolist() == getattr(wanted, name).tolist()
    assert (
        found.fingerprint
        == wanted.fingerprint
        != make_responses("b1 a0 b1", "a1", skills=("a", "b")).fingerprint
    )
