"""A whole emitted folder runs on a CPU: launch.sh, the real vllm-router and `vllm bench serve`, compare.py; the servers are stand-ins."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from roofplan.planner.emit.write import write_folder
from serve_jobs import files_of

from .harness import transformers
from .test_verify_serve import SERVE, needs_serve

SERVER = '''
"""Answers like a vLLM server: a token every 5 ms; a prefill server hands out where its KV is. Logs each request's port and body."""
import http.server, json, os, sys, time

port = int(sys.argv[1])

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, body, kind="application/json"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(json.dumps({"status": "ok", "data": [{"id": "llama3.1-8b"}]}).encode())

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.path.endswith("/completions"):
            return self.answer(b"{}")
        with open(os.environ["CALLS"], "a") as calls:
            calls.write(json.dumps({"port": port, **asked}) + "\\n")
        n = asked["max_tokens"]
        usage = {"prompt_tokens": 4, "completion_tokens": n, "total_tokens": n + 4}
        if not asked.get("stream"):
            time.sleep(0.01)
            reply = {"id": "x", "choices": [{"index": 0, "text": "a", "finish_reason": "length"}], "usage": usage}
            reply["kv_transfer_params"] = {"do_remote_prefill": True, "remote_engine_id": str(port), "remote_block_ids": [1]}
            return self.answer(json.dumps(reply).encode())
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for _ in range(n):
            time.sleep(0.005)
            self.wfile.write(b'data: {"choices": [{"index": 0, "text": "a"}]}\\n\\n')
            self.wfile.flush()
        self.wfile.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\\n\\ndata: [DONE]\\n\\n")
        self.close_connection = True

http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
'''
VLLM = """#!/usr/bin/env bash
# `vllm serve` is the stand-in at the port it is given; `vllm bench serve` is the real one.
if [ "$1" = serve ]; then
  while [ "$1" != --port ]; do shift; done
  exec {python} {server} "$2"
fi
shift 2
exec {python} -c 'import argparse, sys
from vllm.benchmarks import serve
parser = argparse.ArgumentParser()
serve.add_cli_args(parser)
serve.main(parser.parse_args(sys.argv[1:]))' "$@" --disable-tqdm
"""
ROUTER = '#!/usr/bin/env bash\nexec {python} -m vllm_router.launch_router "$@" --prometheus-port {port}\n'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tokenizer(folder: Path) -> None:
    """A word-level tokenizer of a few hundred words, for the benchmark's random prompts."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, **{f"w{i}": i for i in range(1, 400)}}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)


@needs_serve
def test_folder_runs_from_launch_to_comparison(tmp_path: Path) -> None:
    """Two prefill and two decode servers behind the router: each request prefills on one pool, decodes on the other, and is measured."""
    predicted = {"curve": [{"rate_per_s": 40.0, "ttft_s_mean": 0.02, "tpot_s_mean": 0.005, "output_tokens_per_s": 320.0}]}
    parts = {"n_replicas": 2, "n_prefill": 2, "prompt_tokens": 16, "output_tokens": 8, "predicted": predicted}
    write_folder(files_of(**parts), tmp_path / "plan")  # type: ignore[arg-type]
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (tmp_path / "server.py").write_text(SERVER)
    names = {"python": sys.executable, "server": tmp_path / "server.py", "port": free_port()}
    for name, text in (("vllm", VLLM.replace("{python}", str(names["python"])).replace("{server}", str(names["server"]))),
                       ("vllm-router", ROUTER.format(**names))):  # fmt: skip
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    tokenizer(tmp_path / "words")
    port, calls = free_port(), tmp_path / "calls"
    env = {
        **os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(SERVE), "CALLS": str(calls), 
        "VLLM_TARGET_DEVICE": "cpu", "PROMPTS": "64",
        "ROUTER_PORT": str(port), "BASE_URL": f"http://127.0.0.1:{port}", "TOKENIZER": str(tmp_path / "words"), "HF_HUB_OFFLINE": "1",
        "no_proxy": "*",
    }  # fmt: skip
    with (tmp_path / "launch.log").open("w") as log:
        launched = subprocess.Popen(["bash", "plan/vllm/launch.sh"], cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until_ready(launched, f"http://127.0.0.1:{port}/health", tmp_path / "launch.log")
        bench = [str(tmp_path / "plan" / "bench" / "bench.sh")]
        done = subprocess.run(bench, env=env, text=True, capture_output=True, check=False, timeout=150)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    finally:
        os.killpg(launched.pid, signal.SIGTERM)
        launched.wait(30)
    [result] = (tmp_path / "plan" / "bench" / "measured").glob("*.json")
    record = json.loads(result.read_text())
    assert (record["completed"], record["total_output_tokens"], record["request_rate"]) == (64, 512, 40.0)
    with (tmp_path / "plan" / "bench" / "comparison.csv").open() as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"ttft_s_mean", "tpot_s_mean", "output_tokens_per_s"}
    assert float(rows["tpot_s_mean"]["measured"]) > 0.005
    seen = [json.loads(line) for line in calls.read_text().splitlines()]
    first = [one for one in seen if one.get("kv_transfer_params", {}).get("do_remote_decode")]
    second = [one for one in seen if one.get("kv_transfer_params", {}).get("do_remote_prefill")]
    assert {one["port"] for one in first} == {8100, 8101}
    assert {one["port"] for one in second} == {8102, 8103}
    assert {one["kv_transfer_params"]["remote_engine_id"] for one in second} == {"8100", "8101"}
    assert len(first) == len(second) >= 64


def wait_until_ready(launched: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Until the router answers; fails with its log when the launcher ends or a minute passes."""
    for _ in range(120):
        if launched.poll() is not None:
            break
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    pytest.fail(log.read_text()[-3000:])
