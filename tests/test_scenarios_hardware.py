"""Accelerators, links and clusters: the data agrees with physics and with itself, and errors name the cure."""

from __future__ import annotations

import math

import pytest
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadFile, BadInput, UnknownName
from roofplan.scenarios.hardware import Accelerator, Cluster, Link
from roofplan.scenarios.load import build, by_name, names, read_toml

GPUS = sorted(names("hardware"))
LINKS = sorted(names("links"))
CLUSTERS = sorted(names("clusters"))
MEASURED = {"a100-80gb-sxm", "h100-sxm", "h200", "b200"}


def gpu(name: str) -> Accelerator:
    return by_name(Accelerator, "hardware", name, "GPU")


def cluster(name: str) -> Cluster:
    return by_name(Cluster, "clusters", name, "cluster")


@pytest.mark.parametrize("name", GPUS)
def test_tensor_peak_is_a_power_of_two_per_clock_and_sm(name: str) -> None:
    """Dense peak = SMs x FLOP per clock x boost clock, and hardware does a power of two; a sparse figure or a typo breaks this."""
    card = gpu(name)
    peak = max(card.bf16_flops_per_s, card.fp16_flops_per_s)
    per_clock = math.log2(peak / card.n_sms / card.clock_hz)
    assert abs(per_clock - round(per_clock)) < 0.1
    assert round(per_clock) <= 13


@pytest.mark.parametrize("name", GPUS)
def test_peaks_are_ordered_by_width(name: str) -> None:
    card = gpu(name)
    half = max(card.bf16_flops_per_s, card.fp16_flops_per_s)
    assert card.fp32_flops_per_s < half
    if card.tf32_flops_per_s:
        assert half / card.tf32_flops_per_s == pytest.approx(2.0, rel=0.02)
    if card.fp8_flops_per_s:
        assert card.fp8_flops_per_s / half == pytest.approx(2.0, rel=0.02)
    if card.fp4_flops_per_s:
        assert card.fp4_flops_per_s >= 1.99 * card.fp8_flops_per_s


@pytest.mark.parametrize("name", GPUS)
def test_figures_are_plausible(name: str) -> None:
    card = gpu(name)
    peak = max(card.bf16_flops_per_s, card.fp16_flops_per_s)
    assert 25 < peak / card.hbm_bytes_per_s < 450  # FLOP per byte at the ridge: H20 37, L40S 419
    assert 4e9 < card.hbm_bytes < 300e9
    assert 0.005 < card.hbm_bytes / card.hbm_bytes_per_s < 0.08  # one pass over memory takes 5 to 80 ms
    assert 30e9 < peak / card.tdp_w < 3e12
    assert 48 * 2**10 < card.smem_bytes <= 228 * 2**10
    assert 1e6 < card.l2_bytes < 0.01 * card.hbm_bytes
    assert 1e9 < card.clock_hz < 3e9


@pytest.mark.parametrize("name", GPUS)
def test_every_card_is_measured_or_names_a_measured_kin(name: str) -> None:
    card = gpu(name)
    if name in MEASURED:
        assert card.kin == ""
    else:
        kin = card.kin if card.kin in MEASURED else gpu(card.kin).kin
        assert kin in MEASURED


@pytest.mark.parametrize("name", GPUS)
def test_every_card_has_sources_an_own_cluster_and_unique_names(name: str) -> None:
    card = gpu(name)
    assert {"default", "hbm_bytes", "kin"} <= set(card.sources)
    assert set(card.sources) - {"default"} <= set(read_toml(names("hardware")[name]))
    assert cluster(name).gpu == name
    others = {alias for other in GPUS if other != name for alias in (other, *gpu(other).aliases)}
    assert not others & {name, *card.aliases}


@pytest.mark.parametrize("name", LINKS)
def test_links_are_plausible(name: str) -> None:
    link = by_name(Link, "links", name, "link")
    assert 1e9 <= link.bytes_per_s <= 900e9
    assert 0.5e-6 <= link.latency_s <= 100e-6
    assert set(link.sources) == {"bytes_per_s", "latency"} | ({"mesh_links"} if link.mesh_links else set())


@pytest.mark.parametrize(
    ("generation", "card_gbps_both_ways"),
    [("nvlink2", 300), ("nvlink3", 600), ("nvlink4", 900), ("nvlink5", 1800), ("nvlink3-a800", 400), ("nvlink4-h800", 400)],
)
def test_nvlink_is_half_of_the_advertised_bidirectional_figure(generation: str, card_gbps_both_ways: float) -> None:
    assert registry.link(generation).bytes_per_s == card_gbps_both_ways * 1e9 / 2


@pytest.mark.parametrize("name", CLUSTERS)
def test_clusters_are_consistent(name: str) -> None:
    system = cluster(name)
    assert "default" in system.sources
    card, intra, inter, host = gpu(system.gpu), *(registry.link(x) for x in (system.intra, system.inter, system.host_link))
    node_net = inter.bytes_per_s * system.nics_per_node
    if system.gpus_per_node > 1:
        assert node_net <= intra.bytes_per_s * system.gpus_per_node  # the fabric inside a node is at least as wide as outside
    assert intra.bytes_per_s < card.hbm_bytes_per_s
    assert host.bytes_per_s <= intra.bytes_per_s or host.kind == "pcie" or system.gpus_per_node == 1
    assert system.host_ram_bytes >= 0.7 * card.hbm_bytes * system.with_gpus(system.gpus_per_node).gpus_on_host
    assert 0 <= system.spot_usd_per_h <= system.on_demand_usd_per_h or system.on_demand_usd_per_h == 0
    if system.on_demand_usd_per_h:
        assert 0.3 < system.on_demand_usd_per_h < 15
        assert "on_demand" in system.sources
    else:
        assert system.spot_usd_per_h == 0
    if system.spot_usd_per_h:
        assert "spot" in system.sources


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("a100_sxm", "a100-80gb-sxm"), ("h100_sxm", "h100-sxm"), ("h200_sxm", "h200"), ("b200_sxm", "b200"),
        ("H100-80GB", "h100-sxm"), ("H200", "h200"), ("A100-80GB", "a100-80gb-sxm"), ("A100-40GB", "a100-40gb-sxm"),
        ("A100", "a100-80gb-sxm"), ("B300", "b300"), ("GB300", "gb300"), ("V100-16GB", "v100-16gb"), ("GH200-96GB", "gh200-96gb"),
        ("a40", "a40"), ("RTX4090", "rtx4090"), ("NVIDIA GeForce RTX 4090", "rtx4090"), ("RTXPRO6000", "rtx-pro-6000"),
        ("a800", "a800"), ("NVIDIA H100 80GB HBM3", "h100-sxm"), ("H20-3e-141GB", "h20-141gb"),
    ],
)  # fmt: skip
def test_spellings_of_the_data_files(spelling: str, name: str) -> None:
    assert registry.accelerator(spelling).name == name


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("A100-40GB RoCE 1600Gbps/node", "mosaicml-a100-40gb"),
        ("A100-80GB RoCE 1600Gbps/node", "mosaicml-a100-80gb"),
        ("A100-80GB NVLink3 + 8x200Gbps HDR IB (Selene)", "selene"),
        ("GH200-96GB NVLink + Slingshot-11 (Alps Clariden)", "clariden"),
        ("H100-80GB NVLink + AWS EFA v2", "alst-aws"),
        ("V100-16GB NVLink2 + 100Gb/s IB", "dlperf-v100"),
        ("GB300 NVL72+IB", "gb300"),
        ("H100-80GB", "h100-sxm"),
        ("A100", "a100-80gb-sxm"),
    ],
)
def test_gpu_and_interconnect_name_a_cluster(spelling: str, name: str) -> None:
    assert registry.cluster(spelling, 8, None).name == name


def test_host_of_an_nvl72_is_a_tray_of_four() -> None:
    rack = registry.cluster("gb200", 72)
    assert (rack.n_nodes, rack.gpus_on_host, rack.n_hosts, rack.nics_per_node) == (1, 4, 18, 72)
    assert rack.host_ram_bytes * rack.n_hosts == pytest.approx(17.28e12)  # 36 Grace of 480 GB
    four = registry.cluster("gb200", 256)
    assert (four.gpus_per_node, four.n_nodes, four.nics_per_node, four.n_hosts) == (64, 4, 64, 64)
    assert registry.cluster("gb200", 256, gpus_per_node=4) == four
    assert registry.cluster("gb200", 2).gpus_on_host == 2


def test_a_part_of_a_node_keeps_its_share_of_the_nics_and_the_whole_host() -> None:
    whole = registry.cluster("h100-sxm", 16)
    assert (whole.gpus_per_node, whole.nics_per_node, whole.gpus_on_host, whole.n_nodes) == (8, 8, 8, 2)
    part = registry.cluster("h100-sxm", 2)
    assert (part.gpus_per_node, part.nics_per_node, part.gpus_on_host) == (2, 2, 2)
    assert part.host_ram_bytes == whole.host_ram_bytes
    four = registry.cluster("h100-sxm", 16, gpus_per_node=4)
    assert (four.n_nodes, four.nics_per_node) == (4, 4)


@pytest.mark.parametrize(
    ("n_gpus", "per_node", "message"),
    [
        (12, None, "n_gpus=12 is not a whole number of nodes of 8; nearest: 8, 16"),
        (0, None, "n_gpus=0, gpus_per_node=8: both must be at least 1"),
        (8, 0, "n_gpus=8, gpus_per_node=0: both must be at least 1"),
        (2_000_000, None, "n_gpus=2,000,000 is over the limit of 1,000,000"),
    ],
)
def test_wrong_sizes(n_gpus: int, per_node: int | None, message: str) -> None:
    with pytest.raises(BadInput) as error:
        registry.cluster("h100-sxm", n_gpus, per_node)
    assert str(error.value) == message


def test_partial_hosts_of_an_nvl72_are_refused() -> None:
    with pytest.raises(BadInput, match="n_gpus=102 is not a whole number of nodes of 4; nearest: 100, 104"):
        registry.cluster("gb200", 102)


def test_peak_names_and_missing_arithmetic() -> None:
    assert gpu("h100-sxm").peak_flops_per_s("fp8_block") == gpu("h100-sxm").fp8_flops_per_s
    assert gpu("b200").peak_flops_per_s("nvfp4") == 9e15
    with pytest.raises(BadInput, match="v100-16gb has no bf16 arithmetic; legal: fp16, fp32"):
        gpu("v100-16gb").peak_flops_per_s("bf16")
    with pytest.raises(BadInput, match="a100-80gb-sxm has no fp8 arithmetic; legal: bf16, fp16, tf32, fp32, int8, int4"):
        gpu("a100-80gb-sxm").peak_flops_per_s("fp8")


def test_unknown_names_list_the_nearest() -> None:
    with pytest.raises(UnknownName, match="unknown GPU 'h1000-sxm'; nearest: h100-sxm"):
        registry.accelerator("h1000-sxm")


def test_loader_refuses_a_wrong_unit_and_an_unknown_key() -> None:
    row = {"name": "x", "kind": "ib", "bytes_per_s": "400 Gb/s", "latency": "2 us"}
    assert build(Link, row, "x").bytes_per_s == 50e9
    with pytest.raises(BadFile, match=r"x: latency: '2 GB' is not a number with a unit of s"):
        build(Link, row | {"latency": "2 GB"}, "x")
    with pytest.raises(BadFile, match=r"x: unknown key 'latencyy'; did you mean latency"):
        build(Link, row | {"latencyy": "2 us"}, "x")
    with pytest.raises(BadFile, match=r"x: missing kind"):
        build(Link, {k: v for k, v in row.items() if k != "kind"}, "x")
