"""Traces in every published format, and what a broken file says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from roofplan.scenarios.errors import BadFile, BadInput
from roofplan.sim.traces import read_trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
AZURE_2024 = AZURE[:40] + "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01.009930+00:00,2399,6\n"
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\n4.314579,396,109\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
BURST += "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,0,1087,API log\n"
MOONCAKE = '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n'
MOONCAKE += '{"timestamp": 27, "input_length": 512, "output_length": 9, "hash_ids": [0]}\n'
SIM_LOG = '{"request_id": "a", "input_toks": 2358, "output_toks": 531, "arrival_time": 100.5}\n'
SIM_LOG += '{"input_toks": 3, "output_toks": 4, "arrival_time": 100.0}\n'
VLLM = json.dumps({"input_lens": [10, 20], "output_lens": [3, 4], "start_times": [7.0, 7.5], "request_rate": 2})
GUIDELLM = json.dumps({"benchmarks": [{"requests": {"successful": [{"start_time": 5.0, "prompt_tokens": 10, "output_tokens": 3}]}}]})


def put(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text", "arrivals", "prompts", "outputs"),
    [
        ("azure.csv", AZURE, [0, 4.314579], [374, 396], [44, 109]),
        ("azure24.csv", AZURE_2024, [0, 1.0], [2162, 2399], [5, 6]),
        ("vidur.csv", VIDUR, [0, 4.314579], [374, 396], [44, 109]),
        ("burst.csv", BURST, [0, 40], [472, 1087], [18, 1]),
        ("own.csv", "arrival_s,prompt_tokens,output_tokens\n1,2,3\n", [0], [2], [3]),
        ("moon.jsonl", MOONCAKE, [0, 0.027], [600, 512], [5, 9]),
        ("sim.jsonl", SIM_LOG, [0, 0.5], [3, 2358], [4, 531]),
        ("bench.json", VLLM, [0, 0.5], [10, 20], [3, 4]),
        ("guide.json", GUIDELLM, [0], [10], [3]),
    ],
)
def test_published_formats(tmp_path, name, text, arrivals, prompts, outputs):
    work = read_trace(put(tmp_path, name, text))
    np.testing.assert_allclose(work.arrival_s, arrivals, atol=1e-6)
    assert work.prompt_tokens.tolist() == prompts
    assert work.output_tokens.tolist() == outputs
    assert work.source == name


def aiperf(start_ns, isl, osl, phase="profiling", **more):
    metrics = {"input_sequence_length": {"value": isl, "unit": "tokens"}, "output_sequence_length": {"value": osl, "unit": "tokens"}}
    record = {"metadata": {"request_start_ns": start_ns, "benchmark_phase": phase}, "metrics": metrics, "error": None}
    return json.dumps(record | more) + "\n"


def test_aiperf_records_without_warm_up_and_failures(tmp_path):
    lines = [aiperf(5_000_000_000, 9, 1, phase="warmup"), aiperf(8_500_000_000, 30, 4), aiperf(7_000_000_000, 20, 3)]
    lines.append(aiperf(9_000_000_000, 1, 1, error={"code": 500}, metrics={}))
    work = read_trace(put(tmp_path, "profile_export.jsonl", "".join(lines)))
    assert (work.arrival_s.tolist(), work.prompt_tokens.tolist(), work.output_tokens.tolist()) == ([0.0, 1.5], [20, 30], [3, 4])


def test_mooncake_blocks_follow_their_request(tmp_path):
    work = read_trace(put(tmp_path, "m.jsonl", MOONCAKE))
    assert (work.block_starts.tolist(), work.block_ids.tolist(), work.block_id_tokens) == ([0, 2, 3], [0, 1, 0], 512)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", aiperf(1, None, 4), r"line 1: input_sequence_length='None' is not a number of tokens"),
        ("a.jsonl", aiperf(None, 3, 4), r"line 1: request_start_ns=None is not a finite number"),
        ("a.jsonl", '{"metadata": 3, "metrics": {}}', r"line 1: metadata and metrics must be JSON objects"),
        ("a.csv", "a,b\n1,2\n", r"line 1: columns 'a,b' are of no known trace"),
        ("a.csv", AZURE + "2023-11-16 18:1", r"line 4: 1 of 3 columns; the line is cut off"),
        ("a.csv", AZURE + "yesterday,1,2\n", r"line 4: TIMESTAMP='yesterday' is not a time"),
        ("a.csv", VIDUR + "9,-4,2\n", r"line 4: num_prefill_tokens=-4 must be a whole number from 0 to 1e9"),
        ("a.csv", VIDUR + "9,x,2\n", r"line 4: num_prefill_tokens='x' is not a number of tokens"),
        ("a.csv", VIDUR + "inf,1,2\n", r"line 4: arrived_at='inf' is not a time"),
        ("a.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n", "no requests in it"),
        ("a.jsonl", MOONCAKE + '{"timestamp": 3, "inp', r"line 3: not JSON .*cut off"),
        ("a.jsonl", "[1]\n", "line 1: not a JSON object"),
        ("a.jsonl", '{"x": 1}\n', "line 1: keys x are of no known trace"),
        ("a.jsonl", '{"timestamp": NaN, "input_length": 1, "output_length": 1}\n', "line 1: timestamp=nan is not a finite number"),
        ("a.jsonl", MOONCAKE + '{"timestamp": 3, "input_length": 1, "output_length": 1}\n', "2 of 3 requests have hash_ids"),
        ("a.jsonl", '{"timestamp": 3, "input_length": 1, "output_length": 1, "hash_ids": "x"}\n', "line 1: hash_ids must be a list"),
        ("a.json", "{}", "of no known benchmark"),
        ("a.json", '{"input_lens": [1], "output_lens": []}', "must be lists of one length"),
        ("a.json", '{"benchmarks": [{"requests": {"successful": [{}]}}]}', r"successful\[0\]: has no start_time"),
        ("a.txt", "x", ".txt extension is not a trace's"),
    ],
)  # fmt: skip
def test_broken_files_name_the_line(tmp_path, name, text, message):
    with pytest.raises(BadFile, match=message):
        read_trace(put(tmp_path, name, text))


def test_missing_file_and_bytes(tmp_path):
    with pytest.raises(BadFile, match="not a file"):
        read_trace(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(BadFile, match="not UTF-8"):
        read_trace(tmp_path / "b.csv")


@pytest.mark.parametrize("cut", range(1, 200, 7))
def test_a_file_cut_anywhere_is_read_or_refused_in_one_sentence(tmp_path, cut):
    for name, text in (("a.csv", AZURE), ("m.jsonl", MOONCAKE), ("b.json", VLLM), ("g.json", GUIDELLM)):
        try:
            assert len(read_trace(put(tmp_path, name, text[:cut]))) >= 1
        except BadInput as error:
            assert "\n" not in str(error)


def test_full_azure_trace(data_dir):
    work = read_trace(data_dir / "traces" / "azure_llm_2023_conv.csv")
    assert len(work) == 19_366
    assert round(work.prompt_tokens.mean()) == 1155
    assert round(work.output_tokens.mean()) == 211
    same = read_trace(data_dir / "traces" / "vidur_splitwise_conv.csv")
    np.testing.assert_allclose(work.arrival_s, same.arrival_s, atol=1e-3)


def test_full_mooncake_trace_repeats_the_published_share_of_blocks(data_dir):
    work = read_trace(data_dir / "traces" / "mooncake_conversation.jsonl")
    assert len(work) == 11_866
    assert 1 - len(np.unique(work.block_ids)) / len(work.block_ids) == pytest.approx(0.366, abs=0.001)
