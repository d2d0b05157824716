"""The real readers of the emitted configurations: what we emit parses to the plan's numbers, and what is wrong is refused."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from roofplan.planner.emit import accelerate as emit_accelerate
from roofplan.planner.emit import arctic, hfconfig
from roofplan.planner.emit import deepspeed as emit_deepspeed
from roofplan.planner.emit import torchtitan as emit_torchtitan
from roofplan.planner.emit.write import write_folder

from .harness import deepspeed, in_fork, needs_extra, refuses, torch, transformers
from .plans import job_of

ALST = {
    "cp": 8, "cp_kind": "ulysses", "zero_stage": 3, "offload_optimizer": 1, "recompute": "full", "offload_activations": 1,
    "tiled_mlp": 1, "fused_loss": 1,
}  # fmt: skip
FSDP = {"sharding": "fsdp", "zero_stage": 3, "framework": "torchtitan"}


@pytest.fixture
def fake_world() -> Iterator[None]:
    """512 ranks in one process: collectives do nothing, sizes are real."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=512, store=FakeStore())
    deepspeed.init_distributed(dist_init_required=False)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("fake_world")
def test_deepspeed_config_of_512_gpus() -> None:
    """DeepSpeed's own parser agrees with the batch, the stage, the offload and the clipping; wrong values are refused."""
    parse = deepspeed.runtime.config.DeepSpeedConfig
    plain = emit_deepspeed.config_of(job_of(dp=512, zero_stage=3, micro_batch=2, grad_accum=2, offload_optimizer=1, offload_params=1))
    read = parse(dict(plain))
    assert (read.train_batch_size, read.zero_optimization_stage, read.gradient_clipping) == (2048, 3, 1.0)
    assert read.zero_config.offload_optimizer.device == "cpu"
    assert read.zero_config.offload_param.device == "cpu"
    assert read.bfloat16_config.enabled
    ulysses = emit_deepspeed.config_of(job_of(dp=64, **ALST))
    read = parse(dict(ulysses))
    assert read.world_size == 64
    assert read.activation_checkpointing_config.cpu_checkpointing
    assert read.seq_parallel_communication_data_type == torch.bfloat16
    for wrong in (
        {**plain, "train_batch_size": 2049},
        {**plain, "zero_optimization": {"stage": 7}},
        {**plain, "zero_optimization": {**plain["zero_optimization"], "stage_3_prefetch": 1}},
        {**plain, "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "disk"}}},
        {**plain, "fp16": {"enabled": True}},
        {**ulysses, "sequence_parallel_size": 4},
    ):
        with pytest.raises((AssertionError, ValueError)):
            parse(wrong)


def test_our_key_lists_are_deepspeeds() -> None:
    """Every key we allow is a string constant that DeepSpeed's configuration code reads; and it does ignore the ones we refuse."""
    root = Path(deepspeed.__file__).parent
    sources = [root / "runtime", root / "monitor", root / "compile", root / "profiling", root / "comm", root / "autotuning"]
    text = "\n".join(p.read_text() for folder in sources for p in folder.rglob("*.py"))
    literals = set(re.findall(r"""["']([a-z0-9_]+)["']""", text))
    assert literals >= emit_deepspeed.TOP_LEVEL_KEYS
    from deepspeed.runtime.activation_checkpointing import config as checkpointing

    assert set(checkpointing.ACT_CHKPT_DEFAULT) == emit_deepspeed.CHECKPOINTING_KEYS
    assert deepspeed.__version__ == "0.19.8"


@needs_extra
def test_torchtitan_overrides(tmp_path: Path) -> None:
    """torchtitan's parser and its mesh arithmetic read the plan back; unknown keys and wrong meshes are refused."""
    plans: list[tuple[str, dict[str, Any]]] = [
        ("llama3-8b", {"dp": 8, **FSDP}),
        ("llama3-8b", {"cp": 8, "cp_kind": "allgather", "recompute": "full", **FSDP}),
        ("llama3-8b", {"dp": 2, "tp": 2, "pp": 2, "grad_accum": 4, "fused_loss": 1, **FSDP}),
        ("llama3-70b", {"dp": 4, "pp": 4, "tp": 8, "grad_accum": 8, "schedule": "interleaved", "vpp": 5, "recompute": "selective", **FSDP}),
        ("llama3-8b", {"dp": 8, "pp": 2, "grad_accum": 8, "schedule": "zb1p", **FSDP, "sharding": "hsdp", "hsdp_group": 4}),
        ("qwen3-30b-a3b", {"dp": 16, "ep": 8, **FSDP}),
        ("deepseek-v3", {"dp": 64, "ep": 32, "pp": 8, "grad_accum": 8, "layers_first": 8, "layers_last": 5, **FSDP}),
        ("llama3.2-1b", {"dp": 8, **FSDP}),
        ("llama3-70b", {"dp": 8, "tp": 8, "precision": "fp8", **FSDP}),
        ("llama3.1-405b", {"dp": 16, "tp": 8, "pp": 2, "grad_accum": 4, **FSDP, "recompute": "full"}),
    ]

    def check() -> None:
        from torchtitan.config.manager import ConfigManager  # type: ignore[import-not-found]
        from torchtitan.distributed.parallel_dims import ParallelDims  # type: ignore[import-not-found]

        def parse(arguments: list[str]) -> Any:
            return ConfigManager().parse_args(arguments)

        from torchtitan.components.quantization import float8  # type: ignore[import-not-found]

        float8.has_cuda_capability = lambda *capability: True
        for i, (name, layout) in enumerate(plans):
            job = job_of(name, 8192, **layout)
            sys.modules.pop("roofplan_config", None)
            sys.path.insert(0, str(tmp_path / str(i)))
            write_folder(emit_torchtitan.emit(job), tmp_path / str(i))
            sys.path[0] += "/torchtitan"
            arguments = [part for override in emit_torchtitan.overrides(job) for part in override]
            read = parse([*arguments, emit_torchtitan.checkpointing(job)])
            ranks = ParallelDims.from_config(read.parallelism, job.world)
            assert (ranks.tp, ranks.pp, ranks.cp, ranks.ep) == (job.plan.tp, job.plan.pp, job.plan.cp, job.plan.ep)
            assert len(read.model_spec.model.layers) == job.model.n_layers
            assert ranks.dp_replicate * ranks.dp_shard == job.plan.dp
            assert (read.training.seq_len, read.training.global_batch_size) == (8192, job.global_batch)
            kind = {"none": "NoneType", "full": "FullAC.Config", "selective": "SelectiveAC.Config"}[job.plan.recompute]
            assert type(read.activation_checkpoint).__qualname__ == kind
        refuses(lambda: parse([*arguments, "--parallelism.tensor_degree", "2"]), SystemExit)
        refuses(lambda: parse([*arguments, "--parallelism.tensor_parallel_degree", "two"]), SystemExit)
        refuses(lambda: parse(["--module", "llama3", "--config", "llama3_9b"]), ValueError)
        refuses(lambda: ParallelDims.from_config(read.parallelism, job.world + 1), AssertionError)

    in_fork(tmp_path, check, stubs=("triton",))


@needs_extra
def test_arctic_recipe(tmp_path: Path) -> None:
    """ArcticTraining's own configuration classes read the recipe; an unknown key, a wrong type and a bad optimizer are refused."""
    job = job_of(**ALST)
    (tmp_path / "config.json").write_text(json.dumps(hfconfig.config_of(job.model, job.seq_tokens)))
    recipe = arctic.emit(job)["arctictraining/alst.yml"].replace(json.dumps(job.model.hf_ids[0]), json.dumps(str(tmp_path)))
    recipe = recipe.replace('"data-cache"', json.dumps(str(tmp_path / "cache"))).replace('"logs"', json.dumps(str(tmp_path / "logs")))

    def check() -> None:
        from arctic_training.config.trainer import get_config  # type: ignore[import-not-found]

        def parse(text: str) -> Any:
            (tmp_path / "alst.yml").write_text(text)
            return get_config(tmp_path / "alst.yml")

        read = parse(recipe)
        assert (read.sequence_parallel_size, read.data.max_length) == (8, 2**20)
        assert read.tiled_mlp_compute
        assert read.activation_checkpoint_cpu_offload
        assert read.optimizer.learning_rate == 1e-5
        assert read.deepspeed["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
        assert read.deepspeed["gradient_clipping"] == 1.0
        refuses(lambda: parse(recipe + "tiled_mlp: true\n"), ValueError)
        refuses(lambda: parse(recipe.replace("sequence_parallel_size: 8", "sequence_parallel_size: 0")), ValueError)
        refuses(lambda: parse(recipe.replace("cpu_adam", "cpu_adamw")), Exception)

    in_fork(tmp_path, check, stubs=("wandb", "flash_attn"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", [{**ALST, "dp": 2}, {"dp": 4, "tp": 2, **FSDP}], ids=["deepspeed", "fsdp"])
def test_accelerate_config(layout: dict[str, Any], tmp_path: Path) -> None:
    """accelerate reads the file, and each key below a section is an option of ``accelerate launch``, which it does not check itself."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    job = job_of(gpus_per_node=8, **layout)
    text = emit_accelerate.emit(job)["accelerate.yaml"]

    def parse(text: str) -> Any:
        (tmp_path / "accelerate.yaml").write_text(text)
        return load_config_from_file(str(tmp_path / "accelerate.yaml"))

    read = parse(text)
    assert (read.num_processes, read.num_machines) == (job.world, job.nodes)
    options = {action.dest for action in launch_command_parser()._actions}
    for section in (read.deepspeed_config, read.fsdp_config, read.parallelism_config):
        assert set(section) <= options, set(section) - options
    layer = (read.fsdp_config or {}).get("fsdp_transformer_layer_cls_to_wrap", "LlamaDecoderLayer")
    assert hasattr(transformers.models.llama.modeling_llama, layer)
    with pytest.raises(ValueError, match="unknown keys"):
        parse(text + "zero_stage: 3\n")
    with pytest.raises(ValueError, match="is not a valid DistributedType"):
        parse(text.replace(f'"{read.distributed_type.value}"', '"SHARDED"'))
