"""GGUF files whose tensors are not all used, that scale rotary frequencies, or that say how a text begins."""

import numpy as np
import pytest
from conftest import write_gguf

from cot.utils.errors import UserError
from cot.utils.gguf_files import ADD_BOS, ROTARY_FACTORS
from cot.utils.gguf_header import read_float32, read_header
from cot.utils.models import load_model


def refusal(path) -> str:
    """The line with which loading ends, which must be a usage error."""
    with pytest.raises(UserError) as caught:
        load_model(str(path), "cpu", "float32")
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_tensor_that_is_not_there_is_named_as_the_models_weight(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", blk__0__ffn_up__weight=None)
    assert "do not fit LlamaForCausalLM: missing 1 (model.layers.0.mlp.up_proj.weight)" in refusal(path)


def test_a_tensor_that_would_be_skipped_is_named(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", blk__0__attn_q__bias=np.ones(32), blk__1__mine=np.ones(3))
    assert "unknown 2 (blk.0.attn_q.bias, blk.1.mine)" in refusal(path)


def test_another_shape_is_named(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", output_norm__weight=np.ones(31))
    assert "of another shape 1 (model.norm.weight [31] instead of [32])" in refusal(path)


def test_scaled_rotary_frequencies_are_refused_before_the_weights_load(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", rope_freqs__weight=[1] * 7 + [8])
    assert "it scales rotary frequencies (rope_freqs.weight, as Llama 3.1 does)" in refusal(path)


def test_factors_of_one_change_nothing(tmp_path):
    load_model(str(write_gguf(tmp_path / "tiny.gguf", rope_freqs__weight=[1] * 8)), "cpu", "float32")


def test_a_head_of_its_own_and_a_tied_one_load(tmp_path):
    tied, _ = load_model(str(write_gguf(tmp_path / "tied.gguf")), "cpu", "float32")
    own, _ = load_model(
        str(write_gguf(tmp_path / "own.gguf", output__weight=np.ones((259, 32)))), "cpu", "float32"
    )
    assert tied.lm_head.weight is tied.model.embed_tokens.weight and (own.lm_head.weight == 1).all()


@pytest.mark.parametrize(("add_bos", "begins"), [(True, True), (False, False), (None, False)])
def test_a_text_begins_as_the_file_says(tmp_path, add_bos, begins):
    _, tokenizer = load_model(str(write_gguf(tmp_path / "tiny.gguf", add_bos)), "cpu", "float32")
    plain = tokenizer.convert_tokens_to_ids(["h", "i"])
    assert tokenizer.encode("hi") == ([1] if begins else []) + plain
    assert tokenizer.encode("hi", split_special_tokens=True) == tokenizer.encode("hi")
    assert tokenizer.encode("hi", add_special_tokens=False) == plain


def test_a_begin_token_that_is_wanted_and_not_named_is_refused(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", add_bos=True, bos=False)
    assert "tokenizer.ggml.add_bos_token is true, but the file names no such token" in refusal(path)


def test_the_header_is_what_the_gguf_package_reads(tmp_path):
    from gguf import GGUFReader

    factors = [1.0] * 7 + [8.0]
    path = write_gguf(tmp_path / "tiny.gguf", add_bos=True, rope_freqs__weight=factors)
    header, reader = read_header(path), GGUFReader(path)
    assert header.shapes == {t.name: tuple(map(int, reversed(t.shape))) for t in reader.tensors}
    assert header.fields["tokenizer.ggml.tokens"] == 259 and header.fields["llama.block_count"] == 1
    assert header.fields["general.architecture"] == "llama" and header.fields[ADD_BOS] is True
    assert list(read_float32(path, header, ROTARY_FACTORS)) == factors


@pytest.mark.parametrize("content", [b"GGUF", b"GGML" + bytes(40), b"GGUF\x01" + bytes(40)])
def test_what_is_no_gguf_file_is_one_line(tmp_path, content):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.gguf: not a GGUF file of version 2 or 3, or cut off"):
        read_header(tmp_path / "x.gguf")
