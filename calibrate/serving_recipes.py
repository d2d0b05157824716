"""How public benchmark suites launched their engines: limits, cache formats, and how new requests are let in.

Source: SemiAnalysisAI/InferenceX (formerly InferenceMAX), ``benchmarks/*.sh`` at 9596d23d7 (2025-10, Llama 70B), 700f3054b (2025-11) and
0f78cf4eb (2026-03), and their later versions to 2026-04-25; those of Qwen3.5 and GLM-5 at 9dc87a68c, f65d6b4b1, efd49e50b, ebb48d4bc,
13930ca61, d43805fc3 and 48d35c480. Every run: prompts and answers of 80 to 100 % of the nominal length, ten requests a client (GLM-5 on
H200 five), all clients at once, answers cut only by length, no prefix cache. ai-dynamo/aiconfigurator,
``eval/benchmarks/genai_perf_runner.py`` (5e161875) and ``generator/rule_plugin/benchmark/*.rule``: the same, but every prompt and answer
of exactly the nominal length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ..scenarios.serving import ServingEngine

NOMINAL = ((1024, 1024), (1024, 8192), (8192, 1024))
"""Nominal (prompt, answer) lengths of InferenceX."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a launch script sets over the engine's defaults; 0 and '' mean: as the engine ships.

    A server that polls looks for new requests every ``poll_steps`` decode steps (SGLang's scheduler-recv-interval). One that waits
    holds new prompts until they and the decodes fill ``wait_fill_frac`` of the token budget, at most ``wait_steps`` steps
    (TensorRT-LLM's batch_wait_timeout_iters and batch_wait_max_tokens_ratio), or until ``wait_prompts`` of them have come (see
    ``_balanced``). ``expert_parallel``: experts are split whole over the GPUs unasked. ``policy`` replaces the engine's own, ``waves``
    is how many requests each client sends, ``n_requests`` how many are queued at once where there are no clients. Lengths lie evenly
    between two parts of the nominal one. ``expert_kernel`` and ``few_token_products``: see ``ServingEngine``. ``plain_text``: prompts
    are words, which tokenise at no cost that shows, not random tokens written out.
    """

    policy: str = ""
    token_budget: int = 0
    max_num_seqs: int = 0
    kv_dtype: str = ""
    state_dtype: str = ""
    n_requests: int = 0
    waves: int = 10
    memory_utilization_frac: float = 0.0
    largest_graph: int = 0
    poll_steps: int = 0
    wait_steps: int = 0
    wait_fill_frac: float = 1.0
    wait_prompts: int = 0
    asynchronous: bool = False
    expert_parallel: bool = False
    lengths_low_frac: float = 1.0
    lengths_high_frac: float = 1.0
    plain_text: bool = False
    expert_kernel: str = ""
    few_token_products: bool = False

    def kernels(self, engine: ServingEngine) -> ServingEngine:
        """The engine with the kernels that the launch asks for."""
        asked = self.expert_kernel or engine.expert_kernel
        return replace(engine, expert_kernel=asked, few_token_products=self.few_token_products)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A benchmark run as its table row names it; ``date`` is ISO. ``gpu`` is our name of the card."""

    engine: str
    model: str
    gpu: str
    four_bit: bool
    weights: str
    tp: int
    ep: int
    isl: int
    osl: int
    concurrency: int
    date: str
    dp: int = 1

    @property
    def blackwell(self) -> bool:
        return self.gpu in ("b200", "b300", "gb200", "gb300")


def inferencex(run: Run) -> Recipe:
    """The launch script of an InferenceX run; the engine's defaults where the script sets nothing."""
    family = next((name for prefix, name in FAMILIES if run.model.startswith(prefix)), "")
    script = SCRIPTS.get((run.engine, family))
    base = {"lengths_low_frac": 0.8 if (run.isl, run.osl) in NOMINAL else 1.0}
    return Recipe(**base, **(script(run) if script else {}))  # type: ignore[arg-type]


def aiconfigurator(engine: str, version: str, isl: int, clients: int) -> Recipe:
    """A run of the AIConfigurator team: the engine as its generator writes it for benchmarks, CUDA graphs up to the clients' number.

    vLLM and TensorRT-LLM may compute a token for each client, a prompt and 1,500 tokens in a step; TensorRT-LLM holds no more requests
    than clients, and its cache takes 80 % of what is free. SGLang takes whole prompts up to ``isl + 1500`` tokens a step, beside decodes
    from 0.5.3 on (the template for 0.5.1 asks for enable-mix-chunk, which the generator calls enable-mixed-chunk). genai-perf's prompts are
    verses.
    """
    budget = clients + isl + 1500
    if engine == "sglang":
        mixed = tuple(int(x) for x in re.findall(r"\d+", version)[:3]) >= (0, 5, 3)
        return Recipe(token_budget=max(isl + 1500, clients), policy="sglang-mixed" if mixed else "", largest_graph=clients, plain_text=True)
    if engine.startswith("trtllm"):
        return Recipe(token_budget=budget, max_num_seqs=clients, memory_utilization_frac=0.8, largest_graph=clients, plain_text=True)
    return Recipe(token_budget=budget, largest_graph=clients, plain_text=True)


def trtllm_bench(isl: int, osl: int) -> Recipe:
    """A maximum-throughput run of TensorRT-LLM's performance overview, whose page says how many requests of each length it queues."""
    return Recipe(n_requests=TRTLLM_BENCH_REQUESTS.get((isl, osl), 3000))


def stated(recipe: Recipe, notes: str, clients: int) -> Recipe:
    """``recipe`` with what a row's notes say of its own run: "N requests" in all, lengths "(+-P%)" around the nominal ones."""
    if clients and (sent := re.search(r"(\d+) requests conc", notes)):
        recipe = replace(recipe, waves=max(round(int(sent[1]) / clients), 1))
    if spread := re.search(r"\(\+-(\d+)%\)", notes):
        wide = int(spread[1]) / 100
        recipe = replace(recipe, lengths_low_frac=1 - wide, lengths_high_frac=1 + wide)
    return recipe


TRTLLM_BENCH_REQUESTS = {
    (128, 128): 30000,
    (128, 4096): 1500,
    (1000, 2000): 1500,
    (2048, 2048): 1500,
    (5000, 500): 1500,
    (20000, 2000): 1000,
}
"""(prompt, answer) -> requests; 3,000 otherwise. Source: TensorRT-LLM, docs/source/performance/perf-overview.md, Preparing a Dataset."""

ALWAYS_DATED = {"kimi-k2": "2026-03", "qwen3.5-397b-a17b": "2026-03", "glm-5": "2026-03"}
"""Models that only InferenceX measured, for rows that lost their date."""

FAMILIES = (
    ("llama", "llama"), ("gpt-oss", "gpt-oss"), ("deepseek", "deepseek"), ("kimi", "kimi"), ("minimax", "minimax"), ("qwen3.5", "qwen3.5"),
    ("glm-5", "glm-5"),
)  # fmt: skip


def _unread(run: Run) -> bool:
    """Whether a launch passed its settings as ``--config=FILE``, which vLLM takes without reading the file (its issue 43252)."""
    return run.gpu == "h100-sxm" and run.date < "2025-12-05"


def _llama_vllm(run: Run) -> dict[str, object]:
    if _unread(run):
        return {}
    return {"token_budget": 8192, "kv_dtype": "fp8", "asynchronous": True}


def _llama_trtllm(run: Run) -> dict[str, object]:
    waits = run.isl == run.osl == 1024 and run.tp < 8
    return {"token_budget": 16384, "kv_dtype": "fp8"} | ({"wait_steps": 20, "wait_fill_frac": 0.9} if waits else {})


def _gpt_oss_vllm(run: Run) -> dict[str, object]:
    if _unread(run):
        return {}
    kv = "fp8" if run.blackwell and run.date >= "2026" else ""
    experts = "" if run.blackwell or run.date < "2026-01-02" else "marlin"  # VLLM_MXFP4_USE_MARLIN
    return {"token_budget": 8192, "largest_graph": 2048, "kv_dtype": kv, "asynchronous": True, "expert_kernel": experts}


def _gpt_oss_trtllm(run: Run) -> dict[str, object]:
    kv = "fp8" if run.blackwell else "bf16"
    return {"token_budget": 20000, "kv_dtype": kv, "memory_utilization_frac": 0.85} | _balanced(run, TRTLLM_TIMEOUT_STEPS)


def _deepseek_sglang(run: Run) -> dict[str, object]:
    if not run.blackwell:
        return {"token_budget": 32768, "max_num_seqs": 512 if run.isl == run.osl == 1024 else 256, "memory_utilization_frac": 0.82}
    poll = 30 if run.concurrency >= 16 else 10
    both = {"kv_dtype": "fp8", "poll_steps": poll}
    if run.four_bit:
        return both | {"token_budget": 16384, "max_num_seqs": 256}
    both |= {"few_token_products": True}  # SGL_ENABLE_JIT_DEEPGEMM=false, SGLANG_ENABLE_FLASHINFER_GEMM=true
    if run.tp == 4:
        return both | {"token_budget": 8192, "max_num_seqs": 32, "memory_utilization_frac": 0.95, "poll_steps": 10}
    return both | {"token_budget": 32768, "max_num_seqs": 128, "memory_utilization_frac": 0.82}


def _deepseek_trtllm(run: Run) -> dict[str, object]:
    least = 8192 if run.date >= "2025-12" else 0
    budget = max((run.concurrency + run.isl + 127) // 64 * 64, least)
    waits = run.blackwell and not run.four_bit and run.date >= "2026" and run.isl == run.osl == 1024 and run.concurrency >= 64
    held = {"wait_steps": 40, "wait_fill_frac": 0.8} if waits else _balanced(run, 60)
    return {"token_budget": budget, "kv_dtype": "fp8", "memory_utilization_frac": 0.8 if run.blackwell else 0.75} | held


TRTLLM_TIMEOUT_STEPS = 50
"""TensorRT-LLM's own timeout_iters of attention_dp_config."""


def _balanced(run: Run, steps: int) -> dict[str, object]:
    """Every script with attention data parallelism turns enable_balance on: no rank begins a prompt before each has one.

    The next prompt goes to the rank that has just ended a request, which may be any: all of ``n`` have one after ``n·(1 + 1/2 + … + 1/n)``.
    """
    return {"wait_steps": steps, "wait_prompts": round(run.dp * sum(1 / i for i in range(1, run.dp + 1)))} if run.dp > 1 else {}


TUNED_BLACKWELL = {"kv_dtype": "fp8", "largest_graph": 2048}


def _kimi_vllm(run: Run) -> dict[str, object]:
    if not run.four_bit:
        return {"memory_utilization_frac": 0.95}
    return TUNED_BLACKWELL | {"token_budget": 2 * run.isl} if run.date >= "2026-04-20" and run.gpu == "b200" else {}


def _minimax_vllm(run: Run) -> dict[str, object]:
    if run.blackwell and run.date >= "2026-04":
        return TUNED_BLACKWELL | {"token_budget": 2 * run.isl}
    if run.gpu == "h100-sxm":
        return {"max_num_seqs": 256}
    return {"memory_utilization_frac": 0.95, "expert_parallel": True}


def _qwen35_sglang(run: Run) -> dict[str, object]:
    poll = 30 if run.concurrency >= 16 else 10
    if run.gpu == "h200":
        return {"token_budget": 16384, "max_num_seqs": 128, "kv_dtype": "fp8", "state_dtype": "bf16", "memory_utilization_frac": 0.8}
    plain: dict[str, object] = {"token_budget": 32768, "max_num_seqs": 128, "poll_steps": poll, "memory_utilization_frac": 0.82}
    if run.weights == "bf16":
        return plain
    if run.four_bit:
        return plain | {"kv_dtype": "fp8", "poll_steps": 30, "memory_utilization_frac": 0.85}
    return plain | {"kv_dtype": "fp8", "state_dtype": "bf16", "few_token_products": run.gpu == "b200"}


def _glm5_sglang(run: Run) -> dict[str, object]:
    if run.gpu == "h200":
        return {"memory_utilization_frac": 0.85, "waves": 5}
    seats = {"max_num_seqs": run.concurrency, "kv_dtype": "fp8"}  # 8-bit caches are SGLang's default for DSA on Blackwell
    if run.four_bit:
        return seats | {"token_budget": 131072, "memory_utilization_frac": 0.8}
    return seats | {"token_budget": 32768, "memory_utilization_frac": 0.85}


SCRIPTS = {
    ("sglang", "qwen3.5"): _qwen35_sglang,
    ("sglang", "glm-5"): _glm5_sglang,
    ("vllm", "kimi"): _kimi_vllm,
    ("vllm", "minimax"): _minimax_vllm,
    ("vllm", "llama"): _llama_vllm,
    ("trtllm", "llama"): _llama_trtllm,
    ("vllm", "gpt-oss"): _gpt_oss_vllm,
    ("trtllm", "gpt-oss"): _gpt_oss_trtllm,
    ("sglang", "deepseek"): _deepseek_sglang,
    ("trtllm", "deepseek"): _deepseek_trtllm,
}

SPECULATED = {
    "2026-01-14": "pull request 392: MTP added to the DeepSeek-R1 runs of TensorRT-LLM",
    "2026-02-05": "pull request 632: MTP update of DeepSeek-R1 FP8",
    "2026-02-06": "pull request 642: MTP update of DeepSeek-R1 FP4",
}
"""Days on which InferenceX measured its TensorRT-LLM DeepSeek runs with multi-token prediction, which its tables do not say."""


def crowded(run: Run) -> str:
    """Why the load of a run is not what its table says; '' if it is."""
    if (run.engine, run.model, run.gpu, run.concurrency) == ("vllm", "gpt-oss-120b", "h100-sxm", 512) and run.date[:7] == "2025-12":
        return "the script of those days (InferenceX, gptoss_fp4_h100_docker.sh) sent 512 requests at once, whatever the number of seats"
    return ""


def speculated(run: Run, version: str) -> str:
    """Why a run counts as speculative decoding of unpublished acceptance though its table does not say so; '' if it does not."""
    if run.engine == "trtllm" and run.model.startswith("deepseek"):
        return SPECULATED.get(run.date, "")
    if run.engine != "sglang" or run.model != "qwen3.5-397b-a17b":
        return ""
    if run.weights == "fp8_block" and version == "0.5.9" and run.gpu != "h200" and (run.tp, run.ep) == (4, 1):
        return "pull request 898: of SGLang 0.5.9's 8-bit searches only the MTP one has tp 4 without expert parallelism"
    if run.gpu == "b300" and version == "0.5.10.post1":
        return "pull requests 1035, 1048, 1072, 1081 to 1083: MTP and plain runs of the same layouts on the same days"
    return ""
