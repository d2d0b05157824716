"""Cases of techniques: settings reach the pass, ratios point the right way, mistakes are one sentence."""

from __future__ import annotations

import dataclasses

import pytest
from roofplan.calibrate.cases import predict
from roofplan.scenarios.errors import BadInput, UnknownName
from roofplan.scenarios.reference import Case, Layout


def case(**changes: object) -> Case:
    given: dict[str, object] = {
        "name": "c", "system": "S", "claim": "", "metric": "", "unit": "x", "predictor": "technique_gain", "published": 1.0,
        "evidence": "F", "reference": "h2o", "source": "", "layout": Layout(model="llama3-8b", gpu="a100-80gb-sxm", n_gpus=1),
        "numbers": {"tokens": 65536.0}, "words": {"pass": "decode", "quantity": "cache_read", "techniques": "h2o"},
    }  # fmt: skip
    return Case(**{**given, **changes})  # type: ignore[arg-type]


def with_words(**words: str) -> Case:
    base = case()
    return dataclasses.replace(base, words={**base.words, **{k.rstrip("_"): v for k, v in words.items()}})


def test_gain_and_cut_are_inverse() -> None:
    assert predict(case()) == pytest.approx(0.2)
    assert predict(case(predictor="technique_cut")) == pytest.approx(5)


def test_a_value_is_in_the_cases_unit() -> None:
    bytes_ = predict(case(predictor="technique_value", unit="bytes"))
    assert predict(case(predictor="technique_value", unit="GiB")) == pytest.approx(bytes_ / 2**30)
    assert bytes_ == pytest.approx(0.2 * 65536 * 131072)


def test_numbers_override_the_row_and_the_baseline_its_own() -> None:
    assert predict(case(numbers={"tokens": 65536.0, "keep_frac": 0.5})) == pytest.approx(0.5)
    assert predict(case(numbers={"tokens": 65536.0, "base_tokens": 32768.0})) == pytest.approx(0.4)


def test_no_number_of_sequences_means_as_many_as_fit() -> None:
    few, most = (case(predictor="technique_value", unit="seqs", numbers={"tokens": 65536.0, "n_seqs": n}) for n in (1.0, 0.0))
    ratio = predict(most) / predict(few)
    assert ratio == int(ratio) > 10


def test_decoded_tokens_take_room_to_the_last_and_are_read_at_their_mean() -> None:
    """4,096 tokens after 8,192: as many fit as at 12,288, and each step reads 10,240 of each."""
    numbers = {"tokens": 8192.0, "n_seqs": 0.0, "decoded_tokens": 4096.0}
    words = {"pass": "decode", "techniques": ""}
    read = predict(case(predictor="technique_value", unit="bytes", numbers=numbers, words={**words, "quantity": "cache_read"}))
    fit = predict(case(predictor="technique_value", unit="", numbers={"tokens": 12288.0}, words={**words, "quantity": "seqs_that_fit"}))
    assert read == pytest.approx(fit * 10240 * 131072)


def test_an_all_reduce_moves_each_ranks_share_of_a_ring() -> None:
    """One a layer over 2 of 8 sequences: twice half of 32 layers x 8 x 4,096 values of 2 bytes; over 4 ranks twice three quarters."""
    for ranks, share in ((1, 0.0), (2, 1.0), (4, 1.5)):
        layout = Layout(model="llama3-8b", gpu="a100-80gb-sxm", n_gpus=ranks)
        numbers = {"tokens": 1024.0, "n_seqs": 8.0, "all_reduces": 1.0}
        words = {"pass": "decode", "quantity": "messages", "techniques": ""}
        moved = predict(case(predictor="technique_value", unit="bytes", layout=layout, numbers=numbers, words=words))
        assert moved == pytest.approx(share * 32 * 8 * 4096 * 2)


def test_the_floor_is_faster_than_the_calibrated_pass() -> None:
    slow = with_words(quantity="seconds")
    fast = dataclasses.replace(slow, words={**slow.words, "rates": "floor"})
    value = {"predictor": "technique_value", "unit": "ms"}
    assert predict(dataclasses.replace(fast, **value)) < predict(dataclasses.replace(slow, **value))  # type: ignore[arg-type]


def test_a_request_is_a_prefill_and_its_decodes() -> None:
    alone = case(predictor="request_gain", numbers={"tokens": 65536.0, "out_tokens": 1.0}, words={"techniques": ""})
    assert predict(alone) == 1
    assert predict(dataclasses.replace(alone, words={"techniques": "h2o"}, numbers={"tokens": 65536.0, "out_tokens": 1000.0})) > 1


def test_longest_context_fills_the_memory() -> None:
    plain = case(predictor="longest_context", unit="tokens", words={"pass": "decode", "quantity": "", "techniques": ""})
    gpu_bytes, weights = 85.1e9, 2 * 8.03e9
    assert predict(plain) == pytest.approx((gpu_bytes - weights) / 131072, rel=0.02)


def test_mistakes_are_one_sentence() -> None:
    with pytest.raises(UnknownName, match="unknown quantity of a pass 'cash_read'; nearest: cache_read"):
        predict(with_words(quantity="cash_read"))
    with pytest.raises(UnknownName, match="unknown technique 'h20'; nearest: h2o"):
        predict(with_words(techniques="h20"))
    with pytest.raises(BadInput, match="pass='decoding' is not known; legal: prefill, decode, train"):
        predict(with_words(pass_="decoding"))
    with pytest.raises(BadInput, match="unit 'GBs' is not known; legal: , x, s, ms"):
        predict(case(predictor="technique_value", unit="GBs"))
    with pytest.raises(BadInput, match=r"needs 'tokens' in \[numbers\] or \[words\]"):
        predict(case(numbers={}))
